#include "src/statistics/estimate.h"

#include <algorithm>
#include <cmath>

namespace tycho::analyzer {
namespace {

constexpr double kNoSkewness = 1e-9;

}  // namespace

double unskewed(double t, double skewness) {
  if (std::fabs(skewness) < kNoSkewness) return t;
  const double a = skewness;
  return (std::pow(1 + a * t / 3, 3) - 1) / a + a / 6;
}

double skewed(double unskewed, double skewness) {
  if (std::fabs(skewness) < kNoSkewness) return unskewed;
  const double a = skewness;
  return 3 / a * (std::cbrt(1 + a * (unskewed - a / 6)) - 1);
}

double Estimate::p_value(double truth) const {
  if (std::isnan(value) || std::isnan(truth)) return kUnknown;
  const double difference = value - truth;
  const double variance = standard_error * standard_error +
                          2 * difference * denominator_covariance +
                          difference * difference * denominator_variance;
  if (std::isnan(variance)) return kUnknown;
  if (!(variance > 0)) return difference == 0 ? 1 : 0;
  const double t = unskewed(difference / std::sqrt(variance), skewness);
  return student_t_tail(difference < 0 ? -t : t, degrees_of_freedom);
}

Verdict judge_band(const Estimate& estimate, double low, double high) {
  if (!estimate.reliable || std::isnan(estimate.low) || std::isnan(low) || std::isnan(high)) {
    return Verdict::kUnderpowered;
  }
  if (estimate.low >= low && estimate.high <= high) return Verdict::kHolds;
  if (estimate.high < low || estimate.low > high) return Verdict::kViolated;
  return Verdict::kUnderpowered;
}

Verdict judge(const Estimate& estimate, double predicted, double tolerance) {
  return judge_band(estimate, predicted / (1 + tolerance), predicted * (1 + tolerance));
}

double band_p_value(const Estimate& estimate, double low, double high) {
  if (!estimate.reliable || std::isnan(estimate.value) || std::isnan(low) || std::isnan(high)) {
    return kUnknown;
  }
  const double below = low - estimate.value;
  const double above = estimate.value - high;
  const double beyond = std::max(below, above);
  if (beyond <= 0) return 1;
  // As far on the other side of the band is as much of a deviation.
  const double near = estimate.p_value(below > above ? low : high);
  const double far = estimate.standard_error > 0
                         ? student_t_tail((beyond + high - low) / estimate.standard_error,
                                          estimate.degrees_of_freedom)
                         : 0;
  return std::min(1.0, near + (std::isnan(far) ? 0 : far));
}

}  // namespace tycho::analyzer
