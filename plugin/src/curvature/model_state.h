#pragma once

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/script.h>

#include <optional>
#include <utility>
#include <vector>

#include "curvature/freed_memory.h"
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
  /// Generators, buffers, flags, and parameters that were written to, as they were; may be called
  /// while a graph lives that was made since. `generators`: states of an earlier generator_states()
  /// instead, where as many.
  void rewind(const std::vector<at::Tensor>& generators = {});
  /// As they were at begin().
  std::vector<at::Tensor> generator_states() const;
  /// Parameters that are trained, as they were plus `displacement`: their entries one after the
  /// other. Undefined: as they were.
  void move(const at::Tensor& displacement);
  /// Parameters that are trained, to these values, in their order; until the next move().
  void visit(const std::vector<at::Tensor>& values);
  bool moved() const { return displacement_.defined() || visiting_; }
  const at::Tensor& displacement() const { return displacement_; }
  /// Changes with every move, so that what was computed elsewhere can be told.
  int64_t position() const { return position_; }

 private:
  void write_parameters(const at::Tensor& displacement);
  void keep_weights();
  void undo_writes();
  void keep_values();

  /// A parameter. Evaluations may write to it, as embeddings with a largest norm do: its version
  /// tells.
  struct Kept {
    at::Tensor parameter;
    at::Tensor data;    // the same, past the version counter
    at::Tensor values;  // to be put back
    int64_t version = 0;
  };

  const ModelState& model_;
  std::vector<at::Tensor> parameters_;
  bool begun_ = false;
  std::optional<FreedMemory> freed_memory_;
  std::vector<bool> flags_;
  std::vector<std::pair<at::Tensor, at::Tensor>> buffers_;
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_;
  std::vector<Kept> kept_;
  std::vector<std::pair<at::Generator, at::Tensor>> generators_;
  std::vector<std::pair<at::Tensor, at::Tensor>> weights_;  // once moved
  at::Tensor displacement_;
  bool visiting_ = false;
  int64_t position_ = 0;
};

}  // namespace tycho
