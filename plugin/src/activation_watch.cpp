#include "activation_watch.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <mutex>
#include <string>

#include "tensor_sums.h"

namespace tycho {

struct ActivationWatch::Step {
  std::mutex mutex;
  bool active = true;
  bool paused = false;
  std::vector<LayerObservation> layers;
};

ActivationWatch::ActivationWatch(const ModelInfo& model) : model_(model) {}

ActivationWatch::~ActivationWatch() {
  if (!step_) return;
  std::lock_guard lock(step_->mutex);
  step_->active = false;
}

void ActivationWatch::begin(const Needs& needs) {
  needs_ = needs;
  step_ = std::make_shared<Step>();
  step_->layers.resize(model_.layers.size());
}

void ActivationWatch::set_paused(bool paused) {
  if (!step_) return;
  std::lock_guard lock(step_->mutex);
  step_->paused = paused;
}

void ActivationWatch::before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
                             const std::vector<uint32_t>& parameters) {
  adds_in_place_ = false;
  if (!needs_.activations && !needs_.output_gradients) return;
  if (inputs.empty() || !inputs[0].isTensor()) return;
  const at::Tensor first = inputs[0].toTensor();
  if (!first.defined()) return;
  if (parameters.empty()) {
    if (needs_.activations) on_consumer(name, first);
    return;
  }
  // A bias added in place changes the output that was seen before.
  if (name != "aten::add_") return;
  const auto found = outputs_.find(first.unsafeGetTensorImpl());
  adds_in_place_ =
      found != outputs_.end() && model_.parameters[parameters[0]].layer == found->second.layer;
}

ActivationWatch::Sums ActivationWatch::sums_of(const at::Tensor& tensor) {
  const at::Tensor sums = sum_and_square(tensor.detach());
  return {sums.select(0, 0), sums.select(0, 1), tensor.numel()};
}

void ActivationWatch::after(const at::Tensor& output, const std::vector<uint32_t>& parameters) {
  if (!needs_.activations && !needs_.output_gradients) return;
  if (parameters.empty() || !output.is_floating_point()) return;
  // The layer is that of the first parameter; an operator with parameters of two layers belongs
  // to neither.
  const uint32_t layer = model_.parameters[parameters[0]].layer;
  for (const uint32_t parameter : parameters) {
    if (model_.parameters[parameter].layer != layer) return;
  }
  auto* key = output.unsafeGetTensorImpl();
  if (needs_.activations) {
    LayerObservation& observed = step_->layers[layer];
    if (adds_in_place_) {  // Replace what was seen before the bias.
      const auto before_bias = output_sums_.find(key);
      if (before_bias != output_sums_.end()) {
        observed.output_sum = observed.output_sum - before_bias->second.sum;
        observed.output_square_sum = observed.output_square_sum - before_bias->second.square_sum;
        observed.output_elements -= before_bias->second.elements;
      }
    }
    const Sums sums = sums_of(output);
    output_sums_[key] = sums;
    observed.output_sum = observed.output_sum.defined() ? observed.output_sum + sums.sum : sums.sum;
    observed.output_square_sum = observed.output_square_sum.defined()
                                     ? observed.output_square_sum + sums.square_sum
                                     : sums.square_sum;
    observed.output_elements += sums.elements;
  }
  outputs_.insert_or_assign(
      key, LayerOutput{c10::weak_intrusive_ptr<c10::TensorImpl>(output.getIntrusivePtr()), layer});
  if (!needs_.output_gradients || adds_in_place_) return;
  output.register_hook([step = step_, layer](const at::Tensor& d) {
    std::lock_guard lock(step->mutex);
    if (!step->active || !d.defined() || step->paused) return;
    at::NoGradGuard no_grad;
    LayerObservation& seen = step->layers[layer];
    const at::Tensor square_sum = squared_norm(d);
    seen.output_gradient_square_sum = seen.output_gradient_square_sum.defined()
                                          ? seen.output_gradient_square_sum + square_sum
                                          : square_sum;
    seen.output_gradient_elements += d.numel();
  });
}

// An operator without parameters reads a tensor that may be a layer's output.
void ActivationWatch::on_consumer(std::string_view name, const at::Tensor& tensor) {
  if (name != "aten::relu" && name != "aten::relu_" && name != "aten::threshold" &&
      name != "aten::clamp_min")
    return;
  const auto found = outputs_.find(tensor.unsafeGetTensorImpl());
  if (found == outputs_.end() || found->second.tensor.expired() || tensor.dim() < 2) return;
  LayerObservation& observed = step_->layers[found->second.layer];
  const std::string& type = model_.layers[found->second.layer].type;
  // Units are channels: the second dimension behind convolutions and norms over channels, the
  // last one otherwise.
  const bool channels_second = tensor.dim() > 2 && (type.find("Conv") != std::string::npos ||
                                                    type.find("BatchNorm") != std::string::npos ||
                                                    type.find("GroupNorm") != std::string::npos ||
                                                    type.find("InstanceNorm") != std::string::npos);
  const int64_t unit = channels_second ? 1 : tensor.dim() - 1;
  std::vector<int64_t> others;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (i != unit) others.push_back(i);
  }
  if (tensor.numel() == 0) return;
  const at::Tensor largest = at::amax(tensor.detach(), others).to(at::kDouble);
  if (observed.relu_input_max.defined() && observed.relu_input_max.sizes() == largest.sizes()) {
    observed.relu_input_max = at::maximum(observed.relu_input_max, largest);
  } else {
    observed.relu_input_max = largest;
  }
}

std::vector<LayerObservation> ActivationWatch::end(double loss_scale) {
  outputs_.clear();
  output_sums_.clear();
  std::vector<LayerObservation> layers(model_.layers.size());
  if (!step_) return layers;
  std::lock_guard lock(step_->mutex);
  step_->active = false;
  layers = std::move(step_->layers);
  if (loss_scale == 1.0) return layers;
  for (LayerObservation& layer : layers) {
    if (layer.output_gradient_square_sum.defined()) {
      layer.output_gradient_square_sum =
          layer.output_gradient_square_sum / (loss_scale * loss_scale);
    }
  }
  return layers;
}

}  // namespace tycho
