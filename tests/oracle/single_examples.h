#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <vector>

#include "plugin/src/model_info.h"

namespace tycho {

// What the tests of single examples' gradients share.

/// All parameters of a module as those of one layer.
inline ModelInfo describe(torch::nn::Module& module) {
  ModelInfo info;
  info.layers.push_back({0, "", module.name(), {}});
  for (auto& item : module.named_parameters()) {
    const auto id = static_cast<uint32_t>(info.parameters.size());
    info.layers[0].parameters.push_back(id);
    info.parameters.push_back({id, item.key(), 0, item.value()});
  }
  return info;
}

inline std::vector<at::Tensor> parameters_of(const ModelInfo& info) {
  std::vector<at::Tensor> parameters;
  for (const auto& parameter : info.parameters) parameters.push_back(parameter.tensor);
  return parameters;
}

inline at::Tensor normal(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

/// One loss per row of the first dimension: mixes the numbers of a row, and is no sum over them.
inline at::Tensor row_losses(const at::Tensor& y) {
  return y.reshape({y.size(0), -1}).sin().cumsum(1).square().sum(1);
}

/// Brute force: of each of `batch` terms of the loss one backward pass; by example, then parameter,
/// undefined where it does not depend on one.
inline std::vector<std::vector<at::Tensor>> gradients_by_example(
    const at::Tensor& each, const std::vector<at::Tensor>& parameters, int64_t batch) {
  std::vector<std::vector<at::Tensor>> result;
  for (int64_t i = 0; i < batch; ++i)
    result.push_back(torch::autograd::grad({each[i]}, parameters, {}, true, false, true));
  return result;
}

}  // namespace tycho
