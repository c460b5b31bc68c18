#pragma once

#include <cstddef>
#include <vector>

namespace tycho::analyzer {

/// Values from `begin` to before `end` of a series.
struct Part {
  size_t begin = 0;
  size_t end = 0;
  size_t size() const { return end - begin; }
};

/// By how much the level of a noisy series changed from one part of it to another.
struct LevelChange {
  double before = 0;  ///< mean over the first part
  double after = 0;   ///< mean over the second
  double error = 0;   ///< standard error of after - before
  double degrees_of_freedom = 0;
  double change() const { return after - before; }
  /// Half width of the interval at this confidence.
  double half_width(double confidence) const;
};

/// Of at least kFewestOfLevelChange values, equally spaced; else, or where a value is not finite,
/// the error is infinite.
///
/// The noise is what is left when a parabola is taken from the whole series, so that a trend does
/// not count as noise: its error is that of both means, independent of each other, with the
/// autocorrelation of the noise (long_run_variance.h, from the frequencies that a parabola does not
/// hold), but no more than twice the variance of the noise for a mean: where it is slow, the values
/// of a mean are much the same. Correlation over more than about a quarter of the series cannot be
/// told from a trend. Thread-safe.
LevelChange level_change(const std::vector<double>& series, Part before, Part after);

inline constexpr size_t kFewestOfLevelChange = 9;

}  // namespace tycho::analyzer
