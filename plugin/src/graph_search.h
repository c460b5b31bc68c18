#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <vector>

namespace tycho {

/// The leaves from which a node of the autograd graph was computed, each once. Costs a visit of
/// each node before it.
std::vector<at::Tensor> leaves_before(torch::autograd::Node* node);

}  // namespace tycho
