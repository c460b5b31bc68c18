#include "features/parabola.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

namespace tycho {

at::Tensor parabola_vertex(const at::Tensor& here,
                           const std::function<at::Tensor(const at::Tensor&)>& slope) {
  const at::Tensor slope_here = slope(here);
  if (!slope_here.defined()) return {};
  const at::NoGradGuard no_grad;
  // Away from it in both directions, at different distances.
  const at::Tensor step = at::arange(1, here.numel() + 1, here.options())
                              .mul_(0.7)
                              .sin_()
                              .mul_(1 + here.abs().mean())
                              .reshape(here.sizes());
  const double size = step.norm().item<double>();
  const double tolerance = here.scalar_type() == at::kDouble ? 1e-9 : 1e-4;
  double curvature = 0;
  for (const double factor : {1.0, -3.0}) {
    const at::Tensor slope_there = slope(here + factor * step);
    if (!slope_there.defined()) return {};
    const at::Tensor bend = (slope_there - slope_here) / factor;
    const double found = (bend * step).sum(at::kDouble).item<double>() / (size * size);
    const double rest = (bend - found * step).norm().item<double>();
    if (!(found > 0) || !(rest <= tolerance * found * size)) return {};
    if (curvature > 0 && std::abs(found - curvature) > tolerance * curvature) return {};
    curvature = found;
  }
  return here - slope_here / curvature;
}

}  // namespace tycho
