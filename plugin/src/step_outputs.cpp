#include "step_outputs.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <exception>
#include <utility>

#include "backward_pass.h"
#include "tensor_sums.h"

namespace tycho {

StepOutputs::StepOutputs(size_t layers, const Needs& needs, WorkMeter* hooks)
    : activations_(needs.activations),
      gradients_(needs.output_gradients),
      meter_(hooks),
      layers_(layers) {}

void StepOutputs::measure(LayerOutput* output, const at::Tensor& tensor) const {
  if (!activations_) return;
  const at::Tensor sums = sum_and_square(tensor.detach());
  output->sum = sums.select(0, 0);
  output->square_sum = sums.select(0, 1);
  output->elements = tensor.numel();
}

std::shared_ptr<LayerOutput> StepOutputs::add(uint32_t layer, std::string made_by,
                                              const at::Tensor& output) {
  auto made = std::make_shared<LayerOutput>();
  made->layer = layer;
  made->made_by = std::move(made_by);
  measure(made.get(), output);
  layers_[layer].outputs.push_back(made);
  output.register_hook([step = shared_from_this(), made](const at::Tensor& gradient) {
    step->arrived(made.get(), gradient);
  });
  return made;
}

void StepOutputs::arrived(LayerOutput* output, const at::Tensor& gradient) {
  const auto held = lock();
  if (!active_ || !gradient.defined() || paused_) return;
  const WorkMeter::Stretch stretch(meter_);
  at::NoGradGuard no_grad;
  try {
    output->arrived = current_backward_pass();
    if (!gradients_) return;
    output->gradient_square_sum = squared_norm(gradient);
    output->gradient_elements = gradient.numel();
  } catch (const std::exception&) {
    output->why_not = "out of memory";  // An exception would end the user's backward pass.
  }
}

void StepOutputs::look_behind_relu(LayerOutput* output, const at::Tensor& tensor) {
  if (tensor.numel() == 0) return;
  if (!output->unit || *output->unit < 0 || *output->unit >= tensor.dim()) {
    output->units_unknown = true;
    return;
  }
  std::vector<int64_t> others;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (i != *output->unit) others.push_back(i);
  }
  const at::Tensor values = tensor.detach();
  output->largest = (others.empty() ? values : at::amax(values, others)).to(at::kDouble);
}

void StepOutputs::set_paused(bool paused) {
  const auto held = lock();
  paused_ = paused;
}

void StepOutputs::delivered(uint32_t layer, uint32_t parameter, GradientCapture::Use use) {
  const auto held = lock();
  if (!active_ || paused_) return;
  const uint64_t pass = current_backward_pass();
  LayerOutputs& outputs = layers_[layer];
  uint64_t& before = outputs.delivered[parameter];
  if (use == GradientCapture::Use::kFirst && before != 0 && before != pass) {
    // The gradient of the passes before was thrown away.
    for (const auto& output : outputs.outputs) {
      if (output->counted == pass) continue;
      output->counted = 0;
      output->several_passes = false;
    }
  }
  before = pass;
  for (const auto& output : outputs.outputs) {
    if (output->arrived != pass || output->counted == pass) continue;
    output->several_passes = output->counted != 0;
    output->counted = pass;
  }
}

void StepOutputs::stop() {
  const auto held = lock();
  active_ = false;
}

void StepOutputs::end(const ModelInfo& model, double loss_scale,
                      std::vector<LayerObservation>* observed,
                      std::vector<ActivationNotObserved>* not_observed) {
  const auto held = lock();
  active_ = false;
  if (!activations_ && !gradients_) return;
  for (const LayerInfo& layer : model.layers) {
    sum_outputs(layers_[layer.id], layer, gradients_, loss_scale, &(*observed)[layer.id],
                not_observed);
  }
  layers_.clear();
}

}  // namespace tycho
