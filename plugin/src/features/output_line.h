#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "tycho/feature_pass.h"

namespace tycho {

/// FeaturePass::Line of a network's output at the parameters `from`, on the way to those of now.
/// `output_at`: the output, with its graph, at other values of `parameters`, which it writes into
/// them and does not take back. It is called once, and followed by one backward pass and one
/// through that; where an operator has no second derivative, three times. Throws
/// std::runtime_error where the output has no graph, and what `output_at` throws.
FeaturePass::Line output_line(
    const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& from,
    const std::function<at::Tensor(const std::vector<at::Tensor>&)>& output_at);

}  // namespace tycho
