#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "report.h"

namespace tycho::analyzer {

/// A layer that differs from the others in what was measured of it, or that something was said of.
struct StandingOut {
  uint32_t layer = 0;
  double score = 0;              ///< the larger, the more it matters
  std::vector<std::string> why;  ///< what was seen, the most important first
};

/// The layers to look at first, at most `most` of them, the most important first: those that a
/// decision, a remark or a violated law names; whose values were not finite; whose gradients,
/// updates or activations once left their own level by a factor of five or more; or whose last
/// values are ten times above or below those of their kind (at least eight layers, and six times as
/// far off as their scatter). It describes, and is no verdict. One pass over the series.
std::vector<StandingOut> standing_out(const Report& report, size_t most);

}  // namespace tycho::analyzer
