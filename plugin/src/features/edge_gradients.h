#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <cstdint>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// Where the gradient of `tensor` arrives in its graph; not valid where it has no graph.
torch::autograd::Edge edge_of(const at::Tensor& tensor);

/// Gradients of sum(seed * root) captured at edges of the graph, so that neither hooks nor
/// gradients of leaves are touched; undefined where an edge is not valid, or `root` does not depend
/// on it. The graph is kept. One backward pass; call it with gradients enabled.
std::vector<at::Tensor> edge_gradients(const at::Tensor& root, const at::Tensor& seed,
                                       const std::vector<torch::autograd::Edge>& edges);

/// The same of sum(root) with respect to the parameters with these ids, dense.
std::vector<at::Tensor> parameter_gradients(const at::Tensor& root, const ModelInfo& model,
                                            const std::vector<uint32_t>& of);

/// Ids of the parameters that are trained, ascending.
std::vector<uint32_t> trained_parameters(const ModelInfo& model);

}  // namespace tycho
