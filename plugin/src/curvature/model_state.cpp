#include "curvature/model_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <torch/torch.h>

#include <utility>

#include "generator_state.h"

namespace tycho {
namespace {

/// Runs an action until it does not throw; false where it always does. A failed allocation is often
/// the only one.
template <typename Action>
bool insist(const Action& action) noexcept {
  constexpr int kTimes = 4;
  for (int time = 0; time < kTimes; ++time) {
    try {
      action();
      return true;
    } catch (...) {
      continue;
    }
  }
  return false;
}

void note_modules(torch::nn::Module& module, ModelState::Flags* flags) {
  flags->modules.emplace_back(&module, module.is_training());
  for (const auto& child : module.children()) {
    if (!child) continue;
    flags->held.push_back(child);
    note_modules(*child, flags);
  }
}

}  // namespace

std::vector<at::Tensor> ModelState::buffers() const {
  if (module_ != nullptr) return module_->buffers();
  std::vector<at::Tensor> buffers;
  for (const at::Tensor& buffer : script_->buffers()) buffers.push_back(buffer);
  return buffers;
}

ModelState::Flags ModelState::training_flags() const {
  Flags flags;
  if (module_ != nullptr) {
    note_modules(*module_, &flags);
  } else {
    for (const auto& module : script_->modules()) {
      flags.scripts.emplace_back(module, module.is_training());
    }
  }
  return flags;
}

/// train() reaches what a module contains too, which comes later and is put right then.
void ModelState::Flags::put_back() {
  for (auto& [module, training] : modules) {
    if (module->is_training() != training) module->train(training);
  }
  for (auto& [module, training] : scripts) {
    if (module.is_training() != training) module.train(training);
  }
}

SavedState::SavedState(const ModelState& model, std::vector<at::Tensor> parameters)
    : model_(model), parameters_(std::move(parameters)) {}

SavedState::Saved SavedState::save() const {
  Saved saved;
  saved.flags = model_.training_flags();
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
    saved.buffers.emplace_back(buffer);
  }
  for (const at::Tensor& parameter : parameters_) {
    note(parameter);
    saved.parameters.push_back(
        {KeptTensor(parameter), parameter.requires_grad(), parameter.grad(), {}});
  }
  for (const at::Device& device : devices) {
    at::Generator generator = device.is_cpu() ? at::detail::getDefaultCPUGenerator()
                                              : at::globalContext().defaultGenerator(device);
    at::Tensor state = state_of(generator);
    saved.generators.emplace_back(std::move(generator), std::move(state));
  }
  return saved;
}

void SavedState::begin() {
  if (saved_) return;
  const at::NoGradGuard no_grad;
  saved_.emplace(save());
  freed_memory_.emplace();
  for (Parameter& parameter : saved_->parameters) {
    if (parameter.gradient.defined()) parameter.kept.tensor().mutable_grad().reset();
  }
}

bool SavedState::restore() noexcept {
  if (!saved_) return true;
  bool whole = true;
  for (Parameter& parameter : saved_->parameters) {
    parameter.moved_to = at::Tensor();
    whole = insist([&] {
              const at::NoGradGuard no_grad;
              parameter.kept.put_back();
              const at::Tensor& tensor = parameter.kept.tensor();
              if (tensor.grad().unsafeGetTensorImpl() != parameter.gradient.unsafeGetTensorImpl()) {
                tensor.mutable_grad() = parameter.gradient;
              }
            }) &&
            whole;
  }
  for (const KeptTensor& buffer : saved_->buffers) {
    whole = insist([&] {
              const at::NoGradGuard no_grad;
              buffer.put_back();
            }) &&
            whole;
  }
  whole = insist([&] { saved_->flags.put_back(); }) && whole;
  // Last: whatever was done before may have drawn numbers.
  for (auto& [generator, state] : saved_->generators) {
    whole =
        insist([&generator = generator, &state = state] { set_state(generator, state); }) && whole;
  }
  displacement_ = at::Tensor();
  visiting_ = false;
  ++position_;
  saved_.reset();
  freed_memory_.reset();
  return whole;
}

std::vector<at::Tensor> SavedState::generator_states() const {
  std::vector<at::Tensor> states;
  for (const auto& [generator, state] : saved_->generators) states.push_back(state);
  return states;
}

void SavedState::rewind(const std::vector<at::Tensor>& generators) {
  if (!saved_) return;
  const at::NoGradGuard no_grad;
  const bool others = generators.size() == saved_->generators.size();
  put_parameters_back();
  for (const KeptTensor& buffer : saved_->buffers) buffer.put_back();
  saved_->flags.put_back();
  for (size_t i = 0; i < saved_->generators.size(); ++i) {
    auto& [generator, state] = saved_->generators[i];
    set_state(generator, others ? generators[i] : state);
  }
}

void SavedState::put_parameters_back() {
  for (const Parameter& parameter : saved_->parameters) parameter.kept.put_back(parameter.here());
}

void SavedState::move(const at::Tensor& displacement) {
  if (!displacement.defined() && !moved()) return;
  const at::NoGradGuard no_grad;
  int64_t begin = 0;
  for (Parameter& parameter : saved_->parameters) {
    if (!parameter.trained) continue;
    const at::Tensor& weight = parameter.kept.values();
    if (displacement.defined()) {
      const at::Tensor shift = displacement.narrow(0, begin, weight.numel())
                                   .to(weight.device(), at::kDouble)
                                   .reshape(weight.sizes());
      if (!parameter.moved_to.defined()) parameter.moved_to = at::empty_like(weight);
      // One rounding, so that the way back over an update ends exactly where it began.
      parameter.moved_to.copy_(weight.to(at::kDouble) + shift);
    } else {
      parameter.moved_to = at::Tensor();
    }
    begin += weight.numel();
  }
  put_parameters_back();
  displacement_ = displacement;
  visiting_ = false;
  ++position_;
}

void SavedState::visit(const std::vector<at::Tensor>& values) {
  const at::NoGradGuard no_grad;
  size_t next = 0;
  for (Parameter& parameter : saved_->parameters) {
    if (!parameter.trained) continue;
    if (!parameter.moved_to.defined()) parameter.moved_to = at::empty_like(parameter.kept.values());
    parameter.moved_to.copy_(values[next++]);
  }
  put_parameters_back();
  displacement_ = at::Tensor();
  visiting_ = true;
  ++position_;
}

}  // namespace tycho
