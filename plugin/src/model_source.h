#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "model_info.h"

namespace tycho {

/// Where a model's parameters are read, again whenever they are others than before: modules are
/// replaced, grown and pruned in training, and optimizers are given new tensors. The model outlives
/// the source.
struct ModelSource {
  std::function<ModelFacts()> describe;
  /// Parameters that belong to the model now, without their names; costs about a microsecond each.
  std::function<std::vector<at::Tensor>()> tensors;
};

ModelSource source_of(torch::nn::Module& model, const Optimizers& optimizers);
ModelSource source_of(torch::jit::Module& model, const Optimizers& optimizers);
/// Tensors without a module, named by their number. One that the optimizers do not hold any more
/// has been replaced if another is in its place there, and has left otherwise. What optimizers are
/// given later is added under the next number.
ModelSource source_of(const std::vector<at::Tensor>& tensors, const Optimizers& optimizers);

/// What the optimizers hold: group by group, with an undefined tensor behind each.
std::vector<at::Tensor> held_tensors(const Optimizers& optimizers);
/// Whether the very tensor is in the list.
bool contains(const std::vector<at::Tensor>& list, const at::Tensor& tensor);
bool same_tensors(const std::vector<at::Tensor>& left, const std::vector<at::Tensor>& right);

}  // namespace tycho
