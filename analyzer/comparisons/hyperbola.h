#pragma once

#include <vector>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// Steps and examples that a run took to a target.
struct HyperbolaPoint {
  double steps = 0;
  double examples = 0;
};

/// (S/S_min - 1)(E/E_min - 1) = 1 as fitted.
struct HyperbolaFit {
  bool known = false;
  double least_steps = kUnknown;     ///< S_min
  double critical_batch = kUnknown;  ///< B_crit = E_min / S_min
  double low = kUnknown;             ///< 95 % interval of B_crit; 0 or infinity where unbounded
  double high = kUnknown;
  double residual = kUnknown;  ///< root mean square of ln S, over the degrees of freedom
  /// S_min (1 + B_crit/B).
  double steps(double batch) const { return least_steps * (1 + critical_batch / batch); }
};

/// Least squares in ln S over ln S_min and ln B_crit; needs three points at three batch sizes.
/// Exact where the points lie on a hyperbola. Points that are not positive and finite are left out.
HyperbolaFit fit_hyperbola(const std::vector<HyperbolaPoint>& points);

}  // namespace tycho::analyzer
