#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tycho {

/// A layer's own operator as it ran, with all arguments except input, weight and bias fixed. Pure:
/// no autograd, no random numbers, no writes.
class LayerOperator {
 public:
  enum class Kind {
    kLinear,       ///< x W' + b over the last dimension
    kConvolution,  ///< of one, two or three dimensions, with groups, transposed
    kEmbedding,    ///< rows of the weight; the input holds indices
    kScale,        ///< normalisation with a gain, or multiplication by the weight
  };
  virtual ~LayerOperator() = default;
  virtual Kind kind() const = 0;
  /// The operator on `input` with another weight and bias, of the parameters' shapes. It is linear
  /// in weight and bias together, and, except for kScale normalisations, in the input. `bias`
  /// undefined: zero.
  virtual at::Tensor apply(const at::Tensor& input, const at::Tensor& weight,
                           const at::Tensor& bias) const = 0;
  /// The weight as a matrix [out, in] applied to inputs (patches of them, in convolutions) at every
  /// position. Undefined if it is not one: kScale, kEmbedding, groups, transposed convolutions.
  virtual at::Tensor matrix(const at::Tensor& weight) const = 0;
  /// Outputs, or their gradients, as rows [positions of all examples, out]. Undefined for kScale.
  virtual at::Tensor rows(const at::Tensor& output) const = 0;
};

/// One use of a layer's weight in the feature pass.
struct LayerUse {
  static constexpr uint32_t kNone = static_cast<uint32_t>(-1);
  uint32_t layer = 0;     ///< that owns the weight
  uint32_t weight = 0;    ///< parameter id
  uint32_t bias = kNone;  ///< parameter id; kNone: no bias, or another layer's
  int64_t chunk = 0;
  /// Input and output of the operator: before the nonlinearity, with the bias. Values at that
  /// moment, on the layer's device, detached; must not be changed.
  at::Tensor input;
  at::Tensor output;
  std::shared_ptr<const LayerOperator> op;
};

/// One softmax over attention scores in the feature pass: its result, on its way through dropout
/// and changes of shape, multiplied something by a matrix product.
struct AttentionUse {
  uint32_t layer = 0;  ///< whose linear operator ran last before it
  int64_t queries = 0;
  at::Tensor entropy_sum;    ///< float64 scalar: sum over queries of -sum p log p, in nats
  at::Tensor largest_logit;  ///< float64 scalar: of the softmax's input
};

/// Per-example tangent kernels of the network's output, see FeaturePass::tangent_kernel.
struct TangentKernel {
  int64_t examples = 0;
  /// float64 [n, n] by layer id: sum over the layer's parameters. Undefined: the layer is not used,
  /// or why_not[layer] says why it is not available.
  std::vector<at::Tensor> layers;
  std::vector<std::string> why_not;
  at::Tensor whole;        ///< sum over all layers; undefined if one is not available
  at::Tensor directions;   ///< [n, outputs of an example]
  bool products = true;    ///< false: some come from one backward pass for each example
  std::string impossible;  ///< not empty: nothing else is there
};

/// Inputs and outputs of every layer with a weight on the probe batch, at the parameters after the
/// update (Session::set_probe_loss). The pass runs at the first call that needs it and is shared by
/// all probes of the step; every pass of a run sees the same random numbers (dropout is one fixed
/// mask). Random numbers, buffers, training flags, gradients and parameters are restored bit for
/// bit. All functions throw LossError if the loss cannot be used; training thread only.
class FeaturePass {
 public:
  virtual ~FeaturePass() = default;

  /// In the order in which they ran, chunk by chunk. A layer used by several operators has several
  /// entries; a layer whose operators are not known, or that is not used, has none, which is
  /// reported.
  virtual const std::vector<LayerUse>& uses() = 0;
  /// Whether the probe batch is the one of the run's first pass: same shapes, same content where
  /// operators with weights first meet data. False is reported; comparisons with earlier passes are
  /// then meaningless.
  virtual bool comparable() = 0;

  /// Attention computed by a visible softmax, with Needs::probe_attention. Fused attention is not
  /// covered.
  virtual const std::vector<AttentionUse>& attention() = 0;

  virtual int64_t chunks() const = 0;
  /// Weight of a chunk's loss in the probe loss.
  virtual double chunk_weight(int64_t chunk) const = 0;
  /// Whether the user gave the network's output separately from the loss (ProbeLoss::output).
  virtual bool has_output() const = 0;
  /// By chunk, detached. Only with has_output().
  virtual const std::vector<at::Tensor>& outputs() = 0;
  /// Class of each example of a chunk, int64 [n], on the CPU; undefined: none were given.
  virtual at::Tensor labels(int64_t chunk) = 0;
  /// [examples, outputs of an example]: the output at which the chunk's loss is smallest, if the
  /// loss is the same parabola in all entries of the output (a squared error); otherwise undefined.
  virtual at::Tensor targets(int64_t chunk) = 0;
  /// Number of examples in a chunk; 0: unknown.
  virtual int64_t examples(int64_t chunk) = 0;

  /// A use's output (or its gradients) as [examples, rest]; undefined if the examples cannot be
  /// found in it.
  virtual at::Tensor by_example(const LayerUse& use, const at::Tensor& output) = 0;

  // With Needs::probe_feature_gradients only. With several chunks each call may evaluate the chunk
  // again.

  /// Gradients with respect to the output of each entry of uses(); undefined for those of other
  /// chunks, and if it does not depend on them. Gradients of sum(seed * output(chunk)), or, if
  /// `seed` is undefined, of the chunk's loss times its weight.
  virtual std::vector<at::Tensor> gradients(int64_t chunk, const at::Tensor& seed) = 0;

  /// Gradient of the probe loss by parameter id; undefined if it does not depend on the parameter.
  /// One backward pass.
  virtual std::vector<at::Tensor> loss_gradients() = 0;

  /// K_ij = sum over parameters of (d f_i/d theta)(d f_j/d theta) of the first `limit` examples of
  /// the first chunk, with f_i the output of example i along a fixed unit direction drawn from
  /// `generator` (1 if an example has one output). From products of inputs and output gradients if
  /// these are verified to give it (one backward pass, and sometimes three more to verify),
  /// otherwise from one backward pass per example. Only with has_output().
  virtual TangentKernel tangent_kernel(int64_t limit, at::Generator generator) = 0;

  /// Copies of all trained parameters, including those of layers that are not selected.
  virtual std::vector<at::Tensor> parameters() = 0;
  /// The chunk's output at other parameters, an earlier result of parameters(), and its derivative
  /// there along the straight line to the current parameters; both flat.
  struct Line {
    at::Tensor output;
    at::Tensor derivative;
    bool exact = true;  ///< false: a central difference, where operators have no second derivative
  };
  virtual Line line(int64_t chunk, const std::vector<at::Tensor>& from) = 0;
};

}  // namespace tycho
