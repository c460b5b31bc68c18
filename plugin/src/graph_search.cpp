#include "graph_search.h"

#include <torch/csrc/autograd/functions/accumulate_grad.h>

#include <unordered_set>

namespace tycho {

std::vector<at::Tensor> leaves_before(torch::autograd::Node* node) {
  std::vector<at::Tensor> leaves;
  std::unordered_set<torch::autograd::Node*> seen{node};
  std::vector<torch::autograd::Node*> open{node};
  while (!open.empty()) {
    torch::autograd::Node* current = open.back();
    open.pop_back();
    if (const auto* leaf = dynamic_cast<torch::autograd::AccumulateGrad*>(current)) {
      leaves.push_back(leaf->variable);
    }
    for (const torch::autograd::Edge& edge : current->next_edges()) {
      if (edge.function && seen.insert(edge.function.get()).second) {
        open.push_back(edge.function.get());
      }
    }
  }
  return leaves;
}

}  // namespace tycho
