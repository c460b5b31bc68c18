#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "tycho/loss_surface.h"

namespace tycho {

/// Which kind of loss `loss` is, from its values and gradients at `output` and one point near it:
///   squared error a/2 sum (z - y)^2:   gradients differ by a (z' - z), and L = |g|^2 / (2 a);
///   cross-entropy -a sum log p_y over rows along dimension 1 or the last, p = softmax(z):
///                                      p - g/a is 1 at one entry of each row, else 0.
/// Rows without gradient are ignored ones. Whatever else was added, weighted or smoothed makes it
/// unknown. Gradients have to be enabled; what `loss` throws is passed on.
OutputLoss identify_output_loss(const at::Tensor& output,
                                const std::function<at::Tensor(const at::Tensor&)>& loss);

}  // namespace tycho
