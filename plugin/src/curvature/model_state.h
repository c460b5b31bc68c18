#pragma once

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/script.h>

#include <utility>
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
  /// Parameters that a forward pass writes to: embeddings with a largest norm.
  std::vector<at::Tensor> renormalised() const;

 private:
  torch::nn::Module* module_ = nullptr;
  torch::jit::Module* script_ = nullptr;
};

/// What evaluations of a user's losses may change, shared by all surfaces of a step: the default
/// generators of the CPU and of the model's devices, buffers, training flags, gradients,
/// parameters. Gradients are out of the losses' reach in between. The destructor puts everything
/// back.
class SavedState {
 public:
  /// `parameters`: all of the model's. Nothing is saved before begin().
  SavedState(const ModelState& model, std::vector<at::Tensor> parameters);
  ~SavedState();
  SavedState(const SavedState&) = delete;
  SavedState& operator=(const SavedState&) = delete;

  /// Saves; does nothing the second time.
  void begin();
  /// Generators, buffers, flags, and parameters that were renormalised, as they were; may be called
  /// while a graph lives that was made since. `generators`: states of an earlier generator_states()
  /// instead, where as many.
  void rewind(const std::vector<at::Tensor>& generators = {});
  /// As they were at begin().
  std::vector<at::Tensor> generator_states() const;
  /// Parameters that are trained, as they were plus `displacement`: their entries one after the
  /// other. Undefined: as they were.
  void move(const at::Tensor& displacement);
  const at::Tensor& displacement() const { return displacement_; }
  /// Changes with every move, so that what was computed elsewhere can be told.
  int64_t position() const { return position_; }

 private:
  void write_parameters(const at::Tensor& displacement);
  void undo_renormalisation();

  const ModelState& model_;
  std::vector<at::Tensor> parameters_;
  bool begun_ = false;
  std::vector<bool> flags_;
  std::vector<std::pair<at::Tensor, at::Tensor>> buffers_;
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_;
  std::vector<std::pair<at::Tensor, at::Tensor>> renormalised_;
  std::vector<std::pair<at::Generator, at::Tensor>> generators_;
  std::vector<std::pair<at::Tensor, at::Tensor>> weights_;  // once moved
  at::Tensor displacement_;
  int64_t position_ = 0;
};

}  // namespace tycho
