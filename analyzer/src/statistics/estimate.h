#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "src/statistics/student_t.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// An estimate from a time series, with an interval that accounts for its autocorrelation and its
/// skewness.
struct Estimate {
  double value = kUnknown;  ///< over all complete blocks; NaN where there are none
  double low = kUnknown;    ///< limits of the interval; -inf or +inf where unbounded
  double high = kUnknown;
  double standard_error = kUnknown;
  double degrees_of_freedom = 0;
  size_t blocks = 0;  ///< blocks the interval rests on
  uint64_t observations = 0;
  /// The interval can be believed: enough blocks that tell their correlation time. Otherwise (also
  /// with a trend) a consumer says UNDERPOWERED, and the limits are the range of eight consecutive
  /// parts, or unbounded with fewer than 8 blocks.
  bool reliable = false;
  /// Of the value's distribution: third moment over the third power of the standard error, as far
  /// as the blocks tell it.
  double skewness = 0;
  /// Of a ratio: variance of the denominator's mean, and covariance of the residual's mean with
  /// it, both relative to the denominator's square. 0: not a ratio.
  double denominator_variance = 0;
  double denominator_covariance = 0;

  bool bounded() const { return low > -kInfinity && high < kInfinity; }
  /// Probability of a value so far from `truth`, on its side, if that were the truth. From the
  /// distribution that the interval is made of: 0.025 for a truth at a limit of the 95 % interval.
  double p_value(double truth) const;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
};

/// Hall's transformation of a studentised mean of skewed values (Hall 1992), which is distributed
/// as Student's t to second order: t + a t^2/3 + a^2 t^3/27 + a/6, with a the skewness of the mean.
double unskewed(double t, double skewness);
/// Its inverse.
double skewed(double unskewed, double skewness);

/// The decision of the verdict grammar for a positive quantity against its prediction:
/// HOLDS where the whole interval lies within a factor 1 + tolerance of the prediction, VIOLATED
/// where it lies wholly outside, else UNDERPOWERED (and wherever the estimate is not reliable).
Verdict judge(const Estimate& estimate, double predicted, double tolerance);

/// The same against an explicit band [low, high].
Verdict judge_band(const Estimate& estimate, double low, double high);

/// p-value of an estimate outside [low, high]: probability of a value as far from the band, on
/// either side, if the truth were at the nearer edge. 1 inside the band; NaN where the estimate is
/// not reliable.
double band_p_value(const Estimate& estimate, double low, double high);

}  // namespace tycho::analyzer
