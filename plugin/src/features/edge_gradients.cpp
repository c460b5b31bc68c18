#include "features/edge_gradients.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/torch.h>

namespace tycho {

using torch::autograd::Edge;

Edge edge_of(const at::Tensor& tensor) {
  return tensor.requires_grad() ? torch::autograd::impl::gradient_edge(tensor) : Edge();
}

std::vector<at::Tensor> edge_gradients(const at::Tensor& root, const at::Tensor& seed,
                                       const std::vector<Edge>& edges) {
  std::vector<at::Tensor> all(edges.size());
  if (!root.requires_grad()) return all;
  std::vector<size_t> there;
  torch::autograd::edge_list wanted;
  for (size_t i = 0; i < edges.size(); ++i) {
    if (!edges[i].is_valid()) continue;
    there.push_back(i);
    wanted.push_back(edges[i]);
  }
  if (wanted.empty()) return all;
  const auto found = torch::autograd::Engine::get_default_engine().execute(
      {torch::autograd::impl::gradient_edge(root)}, {seed}, /*keep_graph=*/true,
      /*create_graph=*/false, /*accumulate_grad=*/false, wanted);
  for (size_t i = 0; i < there.size(); ++i) all[there[i]] = found[i];
  return all;
}

std::vector<at::Tensor> parameter_gradients(const at::Tensor& root, const ModelInfo& model,
                                            const std::vector<uint32_t>& of) {
  std::vector<Edge> edges;
  for (const uint32_t id : of) {
    edges.push_back(torch::autograd::impl::gradient_edge(model.parameters[id].tensor));
  }
  std::vector<at::Tensor> found = edge_gradients(root, at::ones_like(root), edges);
  for (at::Tensor& gradient : found) {
    if (gradient.defined() && gradient.is_sparse()) gradient = gradient.to_dense();
  }
  return found;
}

std::vector<uint32_t> trained_parameters(const ModelInfo& model) {
  std::vector<uint32_t> trained;
  for (const ParameterInfo& parameter : model.parameters) {
    if (parameter.tensor.requires_grad()) trained.push_back(parameter.id);
  }
  return trained;
}

}  // namespace tycho
