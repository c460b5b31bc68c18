#include "probe_loss.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/record_function.h>
#include <torch/torch.h>

#include <mutex>
#include <stdexcept>
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

class SavedState {
 public:
  SavedState(const ModelState& model, const ModelInfo& info)
      : model_(model), flags_(model.training_flags()) {
    std::vector<at::Device> devices = {at::Device(at::kCPU)};
    const auto note = [&](const at::Tensor& tensor) {
      for (const at::Device& device : devices) {
        if (device == tensor.device()) return;
      }
      devices.push_back(tensor.device());
    };
    for (const at::Tensor& buffer : model.buffers()) {
      if (!buffer.defined()) continue;
      note(buffer);
      buffers_.emplace_back(buffer, buffer.detach().clone());
    }
    for (const ParameterInfo& parameter : info.parameters) {
      note(parameter.tensor);
      // Out of reach of the function, so that it cannot change them.
      gradients_.emplace_back(parameter.tensor, parameter.tensor.grad());
      gradients_.back().first.mutable_grad().reset();
    }
    for (const at::Device& device : devices) {
      at::Generator generator = device.is_cpu() ? at::detail::getDefaultCPUGenerator()
                                                : at::globalContext().defaultGenerator(device);
      const std::lock_guard<std::mutex> lock(generator.mutex());
      at::Tensor state = generator.get_state();
      generators_.emplace_back(std::move(generator), std::move(state));
    }
  }

  void restore() {
    for (auto& [generator, state] : generators_) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(state);
    }
    for (auto& [buffer, values] : buffers_) {
      if (buffer.sizes() != values.sizes()) buffer.resize_(values.sizes());
      buffer.copy_(values);
    }
    for (auto& [parameter, gradient] : gradients_) parameter.mutable_grad() = gradient;
    if (model_.training_flags() != flags_) model_.set_training_flags(flags_);
  }

 private:
  const ModelState& model_;
  std::vector<bool> flags_;
  std::vector<std::pair<at::Tensor, at::Tensor>> buffers_;
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_;
  std::vector<std::pair<at::Generator, at::Tensor>> generators_;
};

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

at::Tensor evaluate_probe_loss(const std::function<at::Tensor()>& probe_loss,
                               const ModelState& model, const ModelInfo& info) {
  const at::NoGradGuard no_grad;
  const at::DisableRecordFunctionGuard unobserved;
  SavedState saved(model, info);
  at::Tensor value;
  try {
    value = probe_loss();
  } catch (...) {
    saved.restore();
    throw;
  }
  saved.restore();
  if (!value.defined() || value.numel() != 1) {
    throw std::invalid_argument("the probe loss is not a scalar");
  }
  return value.detach().to(at::kDouble).reshape({});
}

}  // namespace tycho
