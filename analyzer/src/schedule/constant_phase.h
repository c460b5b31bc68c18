#pragma once

#include <cstddef>
#include <optional>

#include "src/schedule/loss_curve.h"

namespace tycho::analyzer {

/// The first stretch of points at the largest learning rate `peak`, to 2 %: behind the warm-up, up
/// to where the rate falls.
struct ConstantPhase {
  size_t begin = 0;
  size_t end = 0;  ///< one past the last point
};
ConstantPhase constant_phase(const LossCurve& curve, double peak);

/// What more steps at the same constant rate would take from the loss, with its 95 % interval.
struct LookAhead {
  double loss = 0;  ///< now, by the law
  double gain = 0;
  double low = 0;
  double high = 0;
};

/// By the power law, fitted to the losses of `curve` from `begin` to `end`; nothing where there are
/// too few of them, or where they do not follow it: where residuals whose correlation time cannot
/// be told are above a tenth of the gain.
std::optional<LookAhead> look_ahead(const LossCurve& curve, size_t begin, size_t end, double more);

}  // namespace tycho::analyzer
