#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tycho {

/// A loss that cannot be used: it threw, is not a scalar, is not differentiable, depends on no
/// parameter, is not finite, or differs between two evaluations with the same random numbers.
class LossError : public std::runtime_error {
 public:
  /// `loss`: which of the user's losses.
  LossError(std::string loss, const std::string& what)
      : std::runtime_error(what), loss_(std::move(loss)) {}
  const std::string& loss() const { return loss_; }

 private:
  std::string loss_;
};

/// The form of a loss as a function of the network's output z, found from its derivatives.
struct OutputLoss {
  enum Kind {
    kUnknown,
    kSquaredError,  ///< curvature / 2 sum (z - y)^2
    kCrossEntropy   ///< -curvature sum log softmax(z)_y
  };
  Kind kind = kUnknown;
  std::string why_unknown;
  double value = 0;
  double curvature = 0;  ///< of each term: the factor above
  int64_t terms = 0;     ///< in the sum
  int64_t classes = 0;   ///< cross-entropy only
  double entropy = 0;    ///< curvature times the sum of the predictions' entropies, in nats;
                         ///< cross-entropy only
  int64_t examples = 0;  ///< as the user gave it; 0: not given
};

/// A user's loss L as a function of all trainable parameters (including those of layers that are
/// not selected), near the current parameters.
///
/// Vectors are flat tensors [dimension()] on the device of the first parameter, in float64 if a
/// parameter is, otherwise in float32; blocks() says where each parameter's entries are. Every
/// evaluation sees the same random numbers and buffers; generators, buffers, training flags,
/// gradients and parameters are restored bit for bit when the surface is destroyed. All functions
/// throw LossError if the loss cannot be used; training thread only.
class LossSurface {
 public:
  static constexpr uint32_t kNoParameter = static_cast<uint32_t>(-1);
  struct Block {
    uint32_t parameter = kNoParameter;  ///< id; kNoParameter: of a layer that is not selected
    int64_t begin = 0;
    int64_t size = 0;
  };

  virtual ~LossSurface() = default;
  virtual int64_t dimension() const = 0;
  virtual const std::vector<Block>& blocks() const = 0;
  /// For vectors: at::randn({dimension()}, ..., options()).
  virtual at::TensorOptions options() const = 0;

  /// L, a float64 scalar tensor on the parameters' device. Forward only. The result may be
  /// non-finite.
  virtual at::Tensor value() = 0;
  /// dL/dtheta. One forward and backward pass. `products_follow`: keeps the graph, so that the
  /// first product costs no more than those after it.
  virtual at::Tensor gradient(bool products_follow = false) = 0;
  /// H v. The first product at a point also costs a forward pass and a gradient, if the graph fits
  /// one evaluation; later ones cost about two gradients.
  virtual at::Tensor hessian_product(const at::Tensor& vector) = 0;
  /// H_bb v of one block b of the Hessian; v and the result have the block's size.
  virtual at::Tensor block_product(size_t block, const at::Tensor& vector) = 0;
  /// Whether the user gave the network's output separately from the loss.
  virtual bool has_output() const = 0;
  /// J' L'' J v with J the Jacobian of the output and L'' the Hessian of the loss in it.
  /// LossError without an output.
  virtual at::Tensor gauss_newton_product(const at::Tensor& vector) = 0;
  /// One forward pass, and the loss three times on its output.
  virtual OutputLoss output_loss() = 0;

  /// Moves to theta + displacement (undefined: back to theta), rounded once, from float64. Later
  /// measurements are made there, on all surfaces of the step: they share the same parameters.
  virtual void move(const at::Tensor& displacement) = 0;
};

/// Stability condition of an optimizer on a quadratic (theory T1.5): with preconditioner P and
/// coupled decay D it is stable while the largest eigenvalue of P^-1/2 (H + D) P^-1/2 is below
/// `threshold`. Learning rates of parameter groups enter P relative to that of the first group.
struct Stability {
  /// Not empty: there is no such threshold for this optimizer, or not yet; says why.
  std::string unknown;
  at::Tensor preconditioner;  ///< diagonal of P, flat as in LossSurface; undefined: 1
  at::Tensor decay;           ///< diagonal of D; undefined: 0
  double threshold = 0;       ///< with the learning rate that the step used
};

}  // namespace tycho
