#include "curvature/model_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <torch/torch.h>

#include <mutex>
#include <utility>

namespace tycho {
namespace {

/// Visits modules so that a parent comes before what it contains.
template <typename Visit>
void for_each_module(torch::nn::Module& module, const Visit& visit) {
  visit(module);
  for (const auto& child : module.children()) {
    if (child) for_each_module(*child, visit);
  }
}

}  // namespace

std::vector<at::Tensor> ModelState::buffers() const {
  if (module_ != nullptr) return module_->buffers();
  std::vector<at::Tensor> buffers;
  for (const at::Tensor& buffer : script_->buffers()) buffers.push_back(buffer);
  return buffers;
}

std::vector<bool> ModelState::training_flags() const {
  std::vector<bool> flags;
  if (module_ != nullptr) {
    for_each_module(*module_, [&](torch::nn::Module& m) { flags.push_back(m.is_training()); });
  } else {
    for (const auto& module : script_->modules()) flags.push_back(module.is_training());
  }
  return flags;
}

void ModelState::set_training_flags(const std::vector<bool>& flags) const {
  size_t next = 0;
  if (module_ != nullptr) {
    for_each_module(*module_, [&](torch::nn::Module& m) {
      if (next < flags.size()) m.train(flags[next++]);
    });
  } else {
    for (auto module : script_->modules()) {
      if (next < flags.size()) module.train(flags[next++]);
    }
  }
}

SavedState::SavedState(const ModelState& model, std::vector<at::Tensor> parameters)
    : model_(model), parameters_(std::move(parameters)) {}

SavedState::~SavedState() {
  if (!begun_) return;
  const at::NoGradGuard no_grad;
  try {
    move({});
    rewind();
    for (auto& [parameter, gradient] : gradients_) parameter.mutable_grad() = gradient;
  } catch (const std::exception&) {
    // Copies between tensors of equal size: they fail only where everything does.
  }
}

void SavedState::begin() {
  if (begun_) return;
  begun_ = true;
  freed_memory_.emplace();
  flags_ = model_.training_flags();
  std::vector<at::Device> devices = {at::Device(at::kCPU)};
  const auto note = [&](const at::Tensor& tensor) {
    for (const at::Device& device : devices) {
      if (device == tensor.device()) return;
    }
    devices.push_back(tensor.device());
  };
  for (const at::Tensor& buffer : model_.buffers()) {
    if (!buffer.defined()) continue;
    note(buffer);
    buffers_.emplace_back(buffer, buffer.detach().clone());
  }
  for (const at::Tensor& parameter : parameters_) {
    note(parameter);
    gradients_.emplace_back(parameter, parameter.grad());
    gradients_.back().first.mutable_grad().reset();
    kept_.push_back({parameter, parameter.variable_data(), parameter.detach().clone(),
                     static_cast<int64_t>(parameter._version())});
  }
  for (const at::Device& device : devices) {
    at::Generator generator = device.is_cpu() ? at::detail::getDefaultCPUGenerator()
                                              : at::globalContext().defaultGenerator(device);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    at::Tensor state = generator.get_state();
    generators_.emplace_back(std::move(generator), std::move(state));
  }
}

std::vector<at::Tensor> SavedState::generator_states() const {
  std::vector<at::Tensor> states;
  for (const auto& [generator, state] : generators_) states.push_back(state);
  return states;
}

void SavedState::rewind(const std::vector<at::Tensor>& generators) {
  const bool others = generators.size() == generators_.size();
  for (size_t i = 0; i < generators_.size(); ++i) {
    auto& [generator, state] = generators_[i];
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(others ? generators[i] : state);
  }
  undo_writes();
  for (auto& [buffer, values] : buffers_) {
    if (buffer.sizes() != values.sizes()) buffer.resize_(values.sizes());
    // Past the version counter, which graphs that saved the buffer look at.
    buffer.variable_data().copy_(values);
  }
  if (model_.training_flags() != flags_) model_.set_training_flags(flags_);
}

void SavedState::move(const at::Tensor& displacement) {
  if (!displacement.defined() && !moved()) return;
  const at::NoGradGuard no_grad;
  keep_weights();
  write_parameters(displacement);
  keep_values();
  displacement_ = displacement;
  visiting_ = false;
  ++position_;
}

void SavedState::visit(const std::vector<at::Tensor>& values) {
  const at::NoGradGuard no_grad;
  keep_weights();
  for (size_t i = 0; i < weights_.size(); ++i) weights_[i].first.copy_(values[i]);
  keep_values();
  displacement_ = at::Tensor();
  visiting_ = true;
  ++position_;
}

void SavedState::keep_weights() {
  undo_writes();
  if (!weights_.empty()) return;
  for (const at::Tensor& parameter : parameters_) {
    if (!parameter.requires_grad()) continue;
    weights_.emplace_back(parameter.variable_data(), parameter.detach().clone());
  }
}

void SavedState::undo_writes() {
  const at::NoGradGuard no_grad;
  for (Kept& kept : kept_) {
    const auto version = static_cast<int64_t>(kept.parameter._version());
    if (version == kept.version) continue;
    kept.data.copy_(kept.values);
    kept.version = version;
  }
}

void SavedState::keep_values() {
  for (Kept& kept : kept_) kept.values.copy_(kept.data);
}

void SavedState::write_parameters(const at::Tensor& displacement) {
  int64_t begin = 0;
  for (auto& [parameter, weight] : weights_) {
    if (displacement.defined()) {
      const at::Tensor shift = displacement.narrow(0, begin, weight.numel())
                                   .to(parameter.device(), at::kDouble)
                                   .reshape(weight.sizes());
      // One rounding, so that the way back over an update ends exactly where it began.
      parameter.copy_(weight.to(at::kDouble) + shift);
    } else {
      parameter.copy_(weight);
    }
    begin += weight.numel();
  }
}

}  // namespace tycho
