#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "per_example/per_example.h"

namespace tycho {

/// One use of a parameter, and the gradient of the operator's output.
struct GramUse {
  const per_example::Use* use = nullptr;
  at::Tensor output_gradient;
  /// Not nullptr: `use` is an embedding at indices that are the same for all examples (positions),
  /// and this the addition of its result to something of the examples, whose output the gradient is
  /// of.
  const per_example::Use* sum = nullptr;
};

/// float64 [n, n]: inner products of the gradients of the first `examples` examples with respect to
/// `parameter`, which all of `uses` take. From products of inputs and output gradients where that
/// is less work than the gradients themselves: for one position (A A') o (D D') (theory T1.11).
/// Undefined: not to be had so; `why_not` says why.
at::Tensor tangent_gram(const std::vector<GramUse>& uses, const at::Tensor& parameter,
                        const per_example::Batch& batch, int64_t examples, std::string* why_not);

/// float64 [n, n] of rows [n, ...], in blocks of columns.
at::Tensor row_gram(const at::Tensor& rows);

}  // namespace tycho
