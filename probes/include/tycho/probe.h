#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tycho/loss_surface.h"
#include "tycho/v1/record.pb.h"
#include "tycho/v1/run.pb.h"

namespace tycho {

class FeaturePass;  // tycho/feature_pass.h

/// What a probe needs at an observed step. The session merges the needs of all probes scheduled at
/// a step and computes each once.
struct Needs {
  bool gradients = false;                   ///< ParameterObservation::gradient
  bool gradient_norms = false;              ///< ParameterObservation::gradient_norm_sq
  bool microbatch_gradient_norms = false;   ///< ParameterObservation::microbatch_gradient_norm_sq
  bool per_example_gradient_norms = false;  ///< ParameterObservation::per_example_norm_sq
  bool previous_weights = false;            ///< ParameterObservation::previous_weight
  bool activations = false;                 ///< LayerObservation, forward part
  bool output_gradients = false;            ///< LayerObservation, backward part
  bool probe_loss = false;                  ///< StepView::probe_loss
  bool parameter_sums = false;              ///< StepView::parameter_sums
  bool adam_state = false;                  ///< ParameterObservation::adam_*
  bool symmetries = false;                  ///< StepView::symmetries
  bool loss_surface = false;                ///< StepView::surface
  bool step_surface = false;                ///< StepView::step_surface, or else surface
  bool batch_surface = false;               ///< StepView::batch_surface
  bool update = false;                      ///< StepView::update
  bool stability = false;                   ///< StepView::stability (with loss_surface)
  bool probe_features = false;              ///< StepView::features
  bool probe_feature_gradients = false;     ///< StepView::features, its gradients too
  bool convolutions = false;                ///< StepView::convolutions
  bool probe_attention = false;             ///< StepView::features, its attention too

  Needs& operator|=(const Needs& other) {
    gradients |= other.gradients;
    gradient_norms |= other.gradient_norms;
    microbatch_gradient_norms |= other.microbatch_gradient_norms;
    per_example_gradient_norms |= other.per_example_gradient_norms;
    previous_weights |= other.previous_weights;
    activations |= other.activations;
    output_gradients |= other.output_gradients;
    probe_loss |= other.probe_loss;
    parameter_sums |= other.parameter_sums;
    adam_state |= other.adam_state;
    symmetries |= other.symmetries;
    loss_surface |= other.loss_surface;
    step_surface |= other.step_surface;
    batch_surface |= other.batch_surface;
    update |= other.update;
    stability |= other.stability;
    probe_features |= other.probe_features;
    probe_feature_gradients |= other.probe_feature_gradients;
    convolutions |= other.convolutions;
    probe_attention |= other.probe_attention;
    return *this;
  }
};

/// One trainable tensor, as the session knows it. Ids are those of v1::ModelDescription.
struct ParameterInfo {
  uint32_t id = 0;
  std::string name;
  uint32_t layer = 0;
  at::Tensor tensor;
};

struct LayerInfo {
  uint32_t id = 0;
  std::string path;
  std::string type;
  std::vector<uint32_t> parameters;
};

struct ModelInfo {
  std::vector<LayerInfo> layers;
  std::vector<ParameterInfo> parameters;
};

/// What was observed of one parameter during one step. All tensors live on the parameter's device.
struct ParameterObservation {
  /// Sum over the step's microbatches of what backward delivered, divided by the loss scale if that
  /// is not 1: before clipping, weight decay and the optimizer. Undefined: none, or not available
  /// exactly. If only parameter sums were requested, it may be `.grad` itself.
  at::Tensor gradient;
  /// |gradient|^2, a float64 scalar tensor: cheaper if only this is requested.
  at::Tensor gradient_norm_sq;
  /// Squared norm of each microbatch's contribution to `gradient`, one float64 scalar tensor each.
  std::vector<at::Tensor> microbatch_gradient_norm_sq;
  /// For each microbatch, float64 [b_k]: squared norm of each example's contribution to `gradient`
  /// as delivered (with a mean loss over B examples that is the squared norm of its gradient /
  /// B^2). Empty: not available exactly; `why_not_per_example` says why.
  std::vector<at::Tensor> per_example_norm_sq;
  std::string why_not_per_example;
  /// Examples in each microbatch, as seen in the forward pass; empty: unknown.
  std::vector<int64_t> microbatch_sizes;
  /// The parameter before the step (same dtype). Undefined unless requested.
  at::Tensor previous_weight;
  bool update_known = false;  ///< the update's columns of StepView::parameter_sums are there
  /// Adam's and AdamW's moments after the step, not corrected for bias: the optimizer's own
  /// tensors, which must not be changed. With amsgrad the second is the running maximum. Undefined
  /// with other optimizers.
  at::Tensor adam_first_moment;
  at::Tensor adam_second_moment;
  int64_t adam_step = 0;  ///< updates so far, this one included
};

/// Columns of StepView::parameter_sums. w: weights before the update, g: gradient, u: the update
/// (weights after minus weights before).
enum ParameterSum : int64_t {
  kWeightSquare,    ///< sum of w^2
  kGradientSquare,  ///< sum of g^2
  kUpdateSquare,    ///< sum of u^2
  kWeightGradient,  ///< sum of w g
  kWeightUpdate,    ///< sum of w u
  kGradientUpdate,  ///< sum of g u
  kParameterSums    ///< number of columns
};

/// What was observed of one layer during one step: sums, so that microbatches and uses can be
/// pooled. float64 scalar tensors on the layer's device; undefined if the layer did not run.
struct LayerObservation {
  int64_t output_elements = 0;  ///< elements of all outputs in the step
  at::Tensor output_sum;        ///< sum of the output (before the nonlinearity)
  at::Tensor output_square_sum;
  int64_t output_gradient_elements = 0;
  at::Tensor
      output_gradient_square_sum;  ///< as backward delivered it, divided by the loss scale squared
  /// [units] largest input to the ReLU that follows, over the step; undefined if no ReLU follows.
  at::Tensor relu_input_max;
};

/// How an operator applied a kernel to its input: what makes the kernel a matrix. Lists have one
/// entry for each spatial dimension.
struct ConvolutionGeometry {
  std::vector<int64_t> input;  ///< size of what the operator was given; empty: not seen yet
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;      ///< zeros on either side
  std::vector<int64_t> more_at_end;  ///< additional zeros at the end, if padding is not symmetric
  std::vector<int64_t> dilation;
  std::vector<int64_t> output_padding;
  int64_t groups = 1;
  bool transposed = false;
};

/// A dimension of a parameter, or of some of its rows, as it takes part in a symmetry. Its elements
/// are rows `begin` to `begin + count` of the first dimension, reshaped to `view`, in which the
/// dimensions `axes` together are the channel.
struct SymmetryMember {
  uint32_t parameter = 0;
  int64_t begin = 0;
  int64_t count = 0;
  std::vector<int64_t> view;
  std::vector<int64_t> axes;
  int sign = 1;  ///< 1: multiplied by the channel's factor, -1: divided by it
};

/// Parameters that can be transformed together without changing the loss (theory T1.2), found by
/// following the step's forward passes.
struct SymmetryGroup {
  /// "translation": a number may be added along the channels of each member. Otherwise channels are
  /// scaled; the names are those of v1::SymmetryGroup::kind.
  std::string kind;
  int64_t channels = 0;
  int64_t block = 1;     ///< channels may be mixed linearly within blocks of so many
  bool uniform = false;  ///< only all channels by the same factor
  std::vector<SymmetryMember> members;
  /// Derivative of the loss with respect to the logarithm of the factors, caused by the epsilons of
  /// normalisations: float64 [channels], or one number if uniform. Undefined: none.
  at::Tensor epsilon_term;
};

/// One observed step, passed to probes after optimizer.step(). Valid only during the call.
struct StepView {
  int64_t step = 0;
  at::Tensor loss;         ///< float64 scalar, detached; undefined when the user gave a number
  double loss_value = 0;   ///< when `loss` is undefined
  bool loss_known = true;  ///< false: the user gave no scalar
  at::Tensor probe_loss;   ///< float64 scalar at the parameters after the step; undefined where not
                           ///< asked for
  int64_t batch_size = 0;
  bool mean_reduction = true;
  double step_seconds = 0;   ///< wall time since the previous call of Session::step, Tycho's part
                             ///< included; NaN at the first
  double tycho_seconds = 0;  ///< Tycho's part of step_seconds, inside the calls of Session
  /// float64 [parameters, kParameterSums], by parameter id. On the parameters' device if they share
  /// one, otherwise on the CPU. NaN if a factor is missing: no gradient, or no update_known (then w
  /// is the weight after the step). Undefined unless requested.
  at::Tensor parameter_sums;
  const ModelInfo* model = nullptr;
  const v1::OptimizerSettings* optimizer = nullptr;               ///< as used by this step
  const std::vector<ParameterObservation>* parameters = nullptr;  ///< by parameter id
  const std::vector<LayerObservation>* layers = nullptr;          ///< by layer id
  const std::vector<SymmetryGroup>* symmetries = nullptr;         ///< empty unless asked for
  /// By parameter id, of its last use in a forward pass that was observed; known from the first
  /// observed step on, if the kernel was used in it.
  const std::vector<ConvolutionGeometry>* convolutions = nullptr;
  /// The probe loss around the parameters after the update; nullptr: none was given, or it could
  /// not be used.
  LossSurface* surface = nullptr;
  /// The loss on the step's own batch, likewise.
  LossSurface* step_surface = nullptr;
  /// Returns, at each call, the loss on a batch that the parameters do not depend on; nullptr:
  /// there is no further batch. Empty: none was given. Without batches from the user it is the
  /// step's own batch, once, and the surface is at the parameters before the update.
  std::function<std::unique_ptr<LossSurface>()> batch_surface;
  /// Weights after minus weights before, flat as in LossSurface; undefined if some are not known:
  /// at a first step, or if layers that train are not selected.
  at::Tensor update;
  const Stability* stability = nullptr;  ///< of the optimizer as it stands after the step
  /// Inputs and outputs of layers on the probe batch; nullptr: no probe loss was given, or it could
  /// not be used.
  FeaturePass* features = nullptr;
  uint64_t seed = 0;  ///< SessionOptions::seed, for the probe's own random numbers
};

/// Where a probe's numbers are written once they are on the host.
class Recorder {
 public:
  virtual ~Recorder() = default;
  /// `statistic` is one of the probe's; NaN and infinity are recorded as they are.
  virtual void run(const std::string& statistic, double value, double standard_error) = 0;
  virtual void layer(const std::string& statistic, uint32_t layer, double value,
                     double standard_error) = 0;
  virtual void parameter(const std::string& statistic, uint32_t parameter, double value,
                         double standard_error) = 0;
  /// Entry `position` of a list, from 0 (at most 4096), for example the rank of an eigenvalue.
  virtual void index(const std::string& statistic, uint32_t position, double value,
                     double standard_error) = 0;
  /// Reported once per (code, entity), and counted after that.
  virtual void event(v1::Event::Kind kind, const std::string& code, const std::string& message,
                     v1::Scope scope, uint32_t entity) = 0;
  static constexpr double kUnknown = __builtin_nan("");
};

/// Device numbers on their way to the host: everything sent at a step is stacked into one tensor
/// and copied once, without waiting if the device allows it.
class Transfer {
 public:
  virtual ~Transfer() = default;
  /// Queues a tensor of any shape (read as float64, flattened); returns its slot.
  virtual size_t send(const at::Tensor& numbers) = 0;
};

class Arrived {
 public:
  virtual ~Arrived() = default;
  virtual const double* data(size_t slot) const = 0;
  virtual size_t size(size_t slot) const = 0;
  double value(size_t slot) const { return data(slot)[0]; }
};

/// A family of statistics. Derive a class and pass it to Session::add_probe: it is scheduled,
/// recorded, exported and plotted like a built-in probe. All calls come from the training thread,
/// under no_grad and with the observer off. A probe that throws is disabled after three faults;
/// training continues.
class Probe {
 public:
  virtual ~Probe() = default;
  virtual std::string name() const = 0;
  /// Definitions, without ids and probe name (the session fills them in).
  virtual std::vector<v1::StatisticDefinition> statistics() const = 0;
  virtual Needs needs() const = 0;
  /// Called before training, and again when parameters were replaced, added or removed.
  virtual void setup(const ModelInfo&) {}
  /// At a scheduled step: queue device numbers in `transfer`, and return a function that turns them
  /// into records. The returned function runs once the numbers have arrived; it must not touch
  /// `step`.
  using Finish = std::function<void(const Arrived&, Recorder&)>;
  virtual Finish observe(const StepView& step, Transfer& transfer) = 0;
};

/// Builds a definition in one line.
v1::StatisticDefinition define_statistic(std::string name, std::string symbol, std::string unit,
                                         std::vector<v1::Scope> scopes, std::string definition,
                                         std::string source);
/// Marks a statistic as relative to the session's first observation: after a run is resumed, its
/// values have a different reference, and laws do not mix them.
v1::StatisticDefinition since_first_observation(v1::StatisticDefinition definition);

}  // namespace tycho
