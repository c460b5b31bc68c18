#pragma once

#include <torch/nn/module.h>
#include <torch/script.h>

#include <functional>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// The parts of a model that a forward pass may change.
class ModelState {
 public:
  explicit ModelState(torch::nn::Module& model) : module_(&model) {}
  explicit ModelState(torch::jit::Module& model) : script_(&model) {}

  std::vector<at::Tensor> buffers() const;
  std::vector<bool> training_flags() const;
  void set_training_flags(const std::vector<bool>& flags) const;

 private:
  torch::nn::Module* module_ = nullptr;
  torch::jit::Module* script_ = nullptr;
};

/// Evaluates `probe_loss` without gradients and with operators unobserved, then puts back, bit for
/// bit, the default generators of the CPU and of the model's devices, buffers, training flags and
/// gradients. Float64 scalar, detached. Throws what the function throws, and std::invalid_argument
/// where its result is no scalar; everything is put back then too. Costs one evaluation and a copy
/// of the buffers.
at::Tensor evaluate_probe_loss(const std::function<at::Tensor()>& probe_loss,
                               const ModelState& model, const ModelInfo& info);

}  // namespace tycho
