#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// A value on the scale of its quantity, at the step at which it was observed; infinite: it was not
/// finite.
struct Observation {
  int64_t step = 0;
  double value = 0;
};

/// When a series left its own earlier range, as far as its observations tell.
struct Movement {
  enum class State {
    kTooFew,  ///< fewer than kFewestBefore observations before the window: nothing can be said
    kStayed,  ///< it did not leave its range, or was not observed since the window began
    kMoved,
  };
  static constexpr size_t kFewestBefore = 16;

  State state = State::kTooFew;
  int64_t moved = -1;        ///< the first step at which it was seen outside
  int64_t within = -1;       ///< the last step before at which it was in its usual range; -1: none
  double usual = kUnknown;   ///< median of before; NaN where there are too few
  double value = kUnknown;   ///< at the step `moved`; infinite where it was not finite
  double spread = kUnknown;  ///< one standard deviation of before, robust
  bool finite() const { return value - value == 0; }
  /// Distance from the median in spreads, signed; NaN where one of them is not known.
  double spreads() const { return (value - usual) / spread; }
  bool has_moved() const { return state == State::kMoved; }
};

/// What a series is asked for.
struct MovementQuery {
  int64_t from = 0;        ///< the window's first step: what is older is "before"
  int64_t incident = 0;    ///< the step at which the loss was seen to go wrong
  double least = 0;        ///< change that counts, on the scale of the values
  bool logarithms = true;  ///< the values are
  bool rises_only = false;
  double comparisons = 1;  ///< series that are looked at together
};

/// Looks for the first observation outside the range of before, among those that are connected with
/// the incident. `seen`: by step.
///
/// Spread: 1.4826 times the larger of the median distance from the median of before and the median
/// change over as many observations as the window has up to the incident, so that a series that
/// drifts or wanders is not said to move for that. Outside: further from the median than Student's
/// quantile of 1 % over all comparisons (series times observations of the window) times the spread,
/// than 1.25 times the furthest observation of before, and than `least`; or not finite. Connected:
/// the last observation up to the incident, or one of the two before it, is outside, and so are
/// those from the first one on but for single ones. A value that is alone outside before the
/// incident counts only where it is outside limits twice as wide. In its usual range: within three
/// spreads.
///
/// O(n log n). Thread-safe.
Movement find_movement(const std::vector<Observation>& seen, const MovementQuery& query);

}  // namespace tycho::analyzer
