#pragma once

#include <ATen/core/ivalue.h>

#include <string_view>
#include <vector>

#include "rows/layout.h"

namespace tycho::rows {

/// A tensor that an operator takes, itself or in a list, as it was before the operator ran.
struct Argument {
  at::Tensor tensor;
  std::vector<int64_t> sizes;
  Layout layout;
  bool differentiable = false;
  size_t position = 0;  ///< of the argument that it is, or whose list it is in
};

/// One operator that ran, seen with one size of the batch.
struct Call {
  std::string_view name;  ///< without namespace, and without the underscore of in-place operators
  std::vector<c10::IValue> inputs;
  std::vector<Argument> tensors;
  const std::vector<at::Tensor>* outputs = nullptr;
  int64_t examples = 0;
};

/// Where the examples lie in each output. What decides are the arguments that are differentiated:
/// an element of the output belongs to the example whose loss it has a part in, and other arguments
/// are coefficients. Only where no such argument holds examples, the others decide. An operator
/// that is not known to keep examples apart gives Kind::kLost.
std::vector<Layout> apply(const Call& call);

/// Whether the operator's results come from no tensor, or are as good as what is given from outside
/// (random numbers, memory to be filled).
bool makes_data(std::string_view name);

}  // namespace tycho::rows
