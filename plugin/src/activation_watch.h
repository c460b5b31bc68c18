#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gradient_capture.h"
#include "layer_operators.h"
#include "layer_outputs.h"
#include "step_outputs.h"
#include "tycho/probe.h"
#include "work_meter.h"

namespace tycho {

/// Sums over what layers put out in one step, and over the gradients that come back: the
/// LayerObservations.
///
/// C++ modules have no hooks, so a layer's output is found among what operators with its parameters
/// give:
/// - A module of LibTorch's own is known to make its output with one operator. Other operators that
///   meet its parameters (a penalty on weights, a tied decoder) make none.
/// - Of any other module the results that go into a later operator with other parameters of the
///   same module are intermediate; the one that does not is the output. Products that are added or
///   scaled behind a module that multiplies more than once belong to it. Where that does not leave
///   one output for each call, or where it cannot be told what is still the module's own, nothing
///   is observed, and why is said.
///
/// Only what took part in a backward pass that brought a gradient to the layer's parameters, and
/// that counts as GradientCapture has it, is in the sums: not evaluations, not adversarial steps on
/// inputs, not the later evaluations of LBFGS.
///
/// Told of the operators of forward passes by the Observer, on the thread of the forward pass; the
/// gradients arrive on backward's thread. Costs a pass over each output, and one over each
/// gradient.
class ActivationWatch {
 public:
  /// `hooks` takes the time of hooks on outputs; nullptr: not measured.
  explicit ActivationWatch(const ModelInfo& model, WorkMeter* hooks = nullptr);
  ~ActivationWatch();
  ActivationWatch(const ActivationWatch&) = delete;
  ActivationWatch& operator=(const ActivationWatch&) = delete;

  /// Begins a step.
  void begin(const Needs& needs);
  void set_paused(bool paused);
  /// Before an operator. `uses`: of parameters, those that are frozen too.
  void before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
              const std::vector<ParameterUse>& uses);
  /// The first result of the operator of the last before(); undefined: it is no tensor.
  void after(const at::Tensor& output);
  /// In backward: a parameter has received its gradient.
  void delivered(uint32_t parameter, GradientCapture::Use use);

  struct Result {
    std::vector<LayerObservation> layers;  ///< by layer id
    std::vector<ActivationNotObserved> not_observed;
  };
  /// Ends the step; gradients are divided by the loss scale.
  Result end(double loss_scale);

 private:
  struct Operator;
  using OutputPtr = std::shared_ptr<LayerOutput>;
  // What is known of a tensor.
  struct Track {
    c10::weak_intrusive_ptr<c10::TensorImpl> tensor;
    OutputPtr exact;                 // it is this output
    bool reshaped = false;           // in another shape
    std::vector<OutputPtr> descent;  // outputs of modules of the program's own that went into it
    bool constant = false;           // holds nothing of the batch
    std::vector<uint32_t> made_of;   // parameters, where it is constant
  };

  bool wanted() const { return needs_.activations || needs_.output_gradients; }
  const Track* find(const at::Tensor& tensor) const;
  Track& start_track(const at::Tensor& tensor);
  void look_at(const at::Tensor& tensor, size_t position);
  bool descends(uint32_t layer, uint32_t from) const;
  void after_operator(const at::Tensor& output);
  void library_operator(uint32_t layer, const at::Tensor& output);
  void own_operator(uint32_t layer, const std::vector<uint32_t>& parameters,
                    const at::Tensor& output);
  std::optional<int64_t> unit_of(const at::Tensor& output) const;
  void other_operator(const at::Tensor& output);
  /// Begins the track of an output with what its inputs descend from; nullptr: nothing, and no
  /// track unless `wanted`.
  Track* pass_descent(const at::Tensor& output, const uint32_t* through, bool wanted);

  ModelInfo model_;
  WorkMeter* hooks_;
  Needs needs_;
  std::shared_ptr<StepOutputs> step_;
  std::unique_ptr<Operator> operator_;
  std::unordered_map<const c10::TensorImpl*, Track> tracks_;
};

}  // namespace tycho
