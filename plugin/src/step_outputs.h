#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gradient_capture.h"
#include "layer_outputs.h"
#include "tycho/probe.h"
#include "work_meter.h"

namespace tycho {

/// What layers put out in one step: of each output the sums over its elements, and, as backward
/// passes bring them, over its gradient's, and whether the output counts. It counts by the last
/// pass that brought a gradient both to it and to a parameter of its layer; where a later pass
/// begins that parameter's gradient anew, what counted by the passes before does not.
///
/// Outputs are added on the thread of the forward pass, gradients arrive on backward's. Lives as
/// long as a graph that has its hooks: after stop() or end() these do nothing. Sums stay on the
/// device; a pass over each output and one over each gradient, no synchronisation.
class StepOutputs : public std::enable_shared_from_this<StepOutputs> {
 public:
  /// `needs`: says which sums are wanted. `hooks` takes the time of hooks; nullptr: not measured.
  /// It must live until stop() or end().
  StepOutputs(size_t layers, const Needs& needs, WorkMeter* hooks);

  /// To be held while outputs are read or written, here or through the pointers that add() gave,
  /// and for the functions of the next group.
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }

  LayerOutputs& of(uint32_t layer) { return layers_[layer]; }
  /// A new output of the layer, measured, with a hook on its gradient. `output` requires one.
  std::shared_ptr<LayerOutput> add(uint32_t layer, std::string made_by, const at::Tensor& output);
  /// The sums of `output` anew, from the values that `tensor` has now.
  void measure(LayerOutput* output, const at::Tensor& tensor) const;
  /// A ReLU takes this output next: of each unit its largest input, float64, or, where it is not
  /// known which dimension holds the units, that it is not.
  static void look_behind_relu(LayerOutput* output, const at::Tensor& tensor);

  // Without the lock.
  /// While paused, gradients are of no account.
  void set_paused(bool paused);
  /// In backward: a parameter of the layer has received its gradient.
  void delivered(uint32_t layer, uint32_t parameter, GradientCapture::Use use);
  /// Ends the step; the rest is thrown away.
  void stop();
  /// Ends the step with what counts, by layer id; nothing where no sums are wanted. `observed` has
  /// an entry for each layer. Gradients are divided by the loss scale.
  void end(const ModelInfo& model, double loss_scale, std::vector<LayerObservation>* observed,
           std::vector<ActivationNotObserved>* not_observed);

 private:
  void arrived(LayerOutput* output, const at::Tensor& gradient);

  std::mutex mutex_;
  bool activations_;
  bool gradients_;
  WorkMeter* meter_;
  bool active_ = true;
  bool paused_ = false;
  std::vector<LayerOutputs> layers_;
};

}  // namespace tycho
