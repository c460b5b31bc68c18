#pragma once

#include <ATen/core/Tensor.h>

namespace tycho {

/// Whether a backward pass from a tensor would run somebody's own autograd functions (C++ or
/// Python), whose derivatives nobody tested. One walk over the graph, without running it.
bool has_foreign_nodes(const at::Tensor& root);

}  // namespace tycho
