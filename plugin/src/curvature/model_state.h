#pragma once

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/script.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "curvature/freed_memory.h"
#include "curvature/kept_tensor.h"

namespace tycho {

/// The parts of a model that a forward pass may change.
class ModelState {
 public:
  explicit ModelState(torch::nn::Module& model) : module_(&model) {}
  explicit ModelState(torch::jit::Module& model) : script_(&model) {}

  std::vector<at::Tensor> buffers() const;

  /// Modules, a parent before what it contains, with their training flags.
  struct Flags {
    std::vector<std::pair<torch::nn::Module*, bool>> modules;
    std::vector<std::pair<torch::jit::Module, bool>> scripts;
    std::vector<std::shared_ptr<torch::nn::Module>> held;  // what `modules` points to

    void put_back();
  };
  Flags training_flags() const;

 private:
  torch::nn::Module* module_ = nullptr;
  torch::jit::Module* script_ = nullptr;
};

/// What evaluations of a user's losses may change, shared by all surfaces of a step: the default
/// generators of the CPU and of the model's devices, buffers, training flags, gradients, parameters
/// (values, memory, requires_grad). Gradients are out of the losses' reach in between.
///
/// Who called begin(), or had it called, calls restore() before training goes on, whatever was
/// thrown in between. The destructor touches nothing of the model.
class SavedState {
 public:
  /// `parameters`: all of the model's. Nothing is saved before begin().
  SavedState(const ModelState& model, std::vector<at::Tensor> parameters);
  ~SavedState() = default;
  SavedState(const SavedState&) = delete;
  SavedState& operator=(const SavedState&) = delete;

  /// Saves; does nothing the second time. Where it throws (memory is out) nothing was changed, and
  /// nothing will be.
  void begin();
  /// Everything as it was at begin(), bit for bit; nothing the second time. On the CPU this
  /// allocates nothing. False where a part could not be put back, which was tried several times.
  bool restore() noexcept;

  /// Generators, buffers, flags, and parameters that were written to, as they were; may be called
  /// while a graph lives that was made since. `generators`: states of an earlier generator_states()
  /// instead, where as many. One pass over parameters and buffers; nothing before begin().
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
  struct Parameter {
    KeptTensor kept;
    bool trained = false;
    at::Tensor gradient;
    at::Tensor moved_to;  // undefined: where it was
    const at::Tensor& here() const { return moved_to.defined() ? moved_to : kept.values(); }
  };
  struct Saved {
    std::vector<Parameter> parameters;
    std::vector<KeptTensor> buffers;
    std::vector<std::pair<at::Generator, at::Tensor>> generators;
    ModelState::Flags flags;
  };

  Saved save() const;
  void put_parameters_back();

  const ModelState& model_;
  std::vector<at::Tensor> parameters_;
  std::optional<Saved> saved_;
  std::optional<FreedMemory> freed_memory_;
  at::Tensor displacement_;
  bool visiting_ = false;
  int64_t position_ = 0;
};

}  // namespace tycho
