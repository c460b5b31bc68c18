#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace tycho {

/// Where a function of a tensor is smallest, if it is the same parabola in all entries of it: the
/// sum of curvature / 2 (x - vertex)^2, curvature > 0, as a squared error is. Undefined: it is not,
/// as far as its slope here and at two other points says, to 1e-9 of the change (1e-4 in single
/// precision), or it has no slope. `here`: floating point, not empty, without graph. `slope`: the
/// gradient at a tensor of the same shape, or undefined; called up to three times.
at::Tensor parabola_vertex(const at::Tensor& here,
                           const std::function<at::Tensor(const at::Tensor&)>& slope);

}  // namespace tycho
