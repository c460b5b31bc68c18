#include "src/statistics/level_change.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/statistics/long_run_variance.h"
#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kTrend = 2;      // a parabola
constexpr double kSlowNoise = 2;  // variance, in that of what is left without the trend

double mean(const std::vector<double>& series, Part part) {
  double result = 0;
  for (size_t i = part.begin; i < part.end; ++i)
    result += (series[i] - result) / static_cast<double>(i - part.begin + 1);
  return result;
}

/// What is left of the series when its mean and its slope and curvature are taken from it: two
/// polynomials that are orthogonal on the places.
std::vector<double> without_parabola(std::vector<double> series) {
  const auto n = static_cast<double>(series.size());
  const double level = mean(series, {0, series.size()});
  for (double& value : series) value -= level;
  const double spread = (n * n - 1) / 12;  // mean square of the places about their middle
  for (int order = 1; order <= 2; ++order) {
    double product = 0;
    double square = 0;
    const auto shape = [&](size_t i) {
      const double x = static_cast<double>(i) - (n - 1) / 2;
      return order == 1 ? x : x * x - spread;
    };
    for (size_t i = 0; i < series.size(); ++i) {
      product += series[i] * shape(i);
      square += shape(i) * shape(i);
    }
    for (size_t i = 0; i < series.size(); ++i) series[i] -= product / square * shape(i);
  }
  return series;
}

}  // namespace

double LevelChange::half_width(double confidence) const {
  return student_t_quantile(confidence, degrees_of_freedom) * error;
}

LevelChange level_change(const std::vector<double>& series, Part before, Part after) {
  LevelChange result;
  result.before = mean(series, before);
  result.after = mean(series, after);
  result.error = std::numeric_limits<double>::infinity();
  result.degrees_of_freedom = 1;
  if (series.size() < kFewestOfLevelChange) return result;
  const std::vector<double> noise = without_parabola(series);
  double square = 0;
  for (const double value : noise) square += value * value;
  square /= static_cast<double>(series.size() - 1 - kTrend);
  if (!std::isfinite(square)) return result;
  const LongRunVariance known = long_run_variance(noise, kTrend);
  result.degrees_of_freedom = known.degrees_of_freedom;
  // Where the noise is slow the values of a mean are much the same, and it varies like one of them.
  const auto of_mean = [&](Part part) {
    return square * std::min(known.inflation / static_cast<double>(part.size()), kSlowNoise);
  };
  result.error = std::sqrt(of_mean(before) + of_mean(after));
  return result;
}

}  // namespace tycho::analyzer
