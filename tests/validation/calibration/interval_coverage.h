#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tycho::analyzer {

/// A stationary series whose mean, or ratio of means, is known.
enum class SeriesKind {
  kNormal,       ///< AR(1)
  kLogNormal,    ///< exp of an AR(1) of variance 1: skewness 6.2
  kSquaredRatio  ///< ratio of the squares of two AR(1): chi^2 with 1 degree of freedom,
                 ///< skewness 2.8
};
const char* to_string(SeriesKind kind);

/// Coverage of BlockAverages' intervals over independent series.
struct IntervalCoverage {
  SeriesKind kind = SeriesKind::kNormal;
  double correlation = 0;  ///< of neighbours in the underlying AR(1)
  int length = 0;
  double confidence = 0.95;
  int series = 0;
  int bounded = 0;   ///< with a finite interval
  int missed = 0;    ///< intervals that do not hold the truth
  int tails = 0;     ///< truths with a p-value below 0.0005, of either side
  double width = 0;  ///< median of the finite intervals' width over the exact one's, normal only
  double covered() const { return 1 - static_cast<double>(missed) / series; }
};

IntervalCoverage interval_coverage(SeriesKind kind, double correlation, int length,
                                   double confidence, int series, uint64_t seed);

}  // namespace tycho::analyzer
