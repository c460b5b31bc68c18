#include "curvature/foreign_nodes.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <string_view>
#include <typeinfo>
#include <unordered_set>
#include <vector>

namespace tycho {
namespace {

/// CppNode<F> is LibTorch's wrapper of a C++ function, PyNode that of a Python one.
bool is_foreign(const torch::autograd::Node& node) {
  const std::string_view type = typeid(node).name();
  return type.find("CppNode") != std::string_view::npos ||
         type.find("PyNode") != std::string_view::npos;
}

}  // namespace

bool has_foreign_nodes(const at::Tensor& root) {
  if (!root.defined() || !root.grad_fn()) return false;
  std::vector<torch::autograd::Node*> waiting = {root.grad_fn().get()};
  std::unordered_set<torch::autograd::Node*> seen(waiting.begin(), waiting.end());
  while (!waiting.empty()) {
    torch::autograd::Node& node = *waiting.back();
    waiting.pop_back();
    if (is_foreign(node)) return true;
    for (const torch::autograd::Edge& edge : node.next_edges()) {
      if (edge.function && seen.insert(edge.function.get()).second) {
        waiting.push_back(edge.function.get());
      }
    }
  }
  return false;
}

}  // namespace tycho
