#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// One row of StepView::parameter_sums.
struct SumsInput {
  at::Tensor weight;    ///< after the update
  at::Tensor gradient;  ///< may be undefined
  at::Tensor previous;  ///< before the update; may be undefined
  /// sum_and_square() of the gradient that is asked for; undefined: `gradient` is that one. Else,
  /// if `gradient` has other sums, it has been changed meanwhile and is left out.
  at::Tensor fingerprint{};
};

struct ParameterSums {
  at::Tensor sums;
  std::vector<size_t> changed;  ///< inputs whose gradient is not the one with their fingerprint
};

/// float64 [inputs, kParameterSums]: accumulated in float64 from the values as they are stored. On
/// the CPU one pass over weights, gradient and previous weights; with `refresh` that pass leaves
/// the weights in `previous`, for the step after. Elsewhere ATen operators on the device, nothing
/// is waited for. Complex parameters count with both parts; gradients may be sparse. Rows of what
/// is not there are NaN. Results do not depend on the number of threads.
ParameterSums parameter_sums(const std::vector<SumsInput>& inputs, bool refresh);

}  // namespace tycho
