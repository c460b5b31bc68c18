#include "interval_coverage.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "src/statistics/block_averages.h"

namespace tycho::analyzer {
namespace {

/// AR(1) of variance 1 in its stationary state.
class Autoregressive {
 public:
  Autoregressive(double correlation, std::mt19937_64& generator)
      : correlation_(correlation), generator_(generator), value_(normal_(generator)) {}
  double next() {
    const double now = value_;
    value_ =
        correlation_ * value_ + std::sqrt(1 - correlation_ * correlation_) * normal_(generator_);
    return now;
  }

 private:
  double correlation_;
  std::mt19937_64& generator_;
  std::normal_distribution<double> normal_;
  double value_;
};

constexpr double kNormalMean = 3;

}  // namespace

const char* to_string(SeriesKind kind) {
  switch (kind) {
    case SeriesKind::kNormal:
      return "normal";
    case SeriesKind::kLogNormal:
      return "lognormal";
    case SeriesKind::kSquaredRatio:
      return "ratio of squares";
  }
  return "";
}

IntervalCoverage interval_coverage(SeriesKind kind, double correlation, int length,
                                   double confidence, int series, uint64_t seed) {
  IntervalCoverage result{kind, correlation, length, confidence, series};
  std::mt19937_64 generator(seed);
  std::vector<double> widths;
  const double truth = kind == SeriesKind::kNormal      ? kNormalMean
                       : kind == SeriesKind::kLogNormal ? std::exp(0.5)
                                                        : 1;
  for (int i = 0; i < series; ++i) {
    Autoregressive first(correlation, generator);
    Autoregressive second(correlation, generator);
    BlockAverages blocks(2);
    for (int step = 0; step < length; ++step) {
      const double a = first.next();
      const double b = second.next();
      if (kind == SeriesKind::kNormal) blocks.add({kNormalMean + a, 1});
      if (kind == SeriesKind::kLogNormal) blocks.add({std::exp(a), 1});
      if (kind == SeriesKind::kSquaredRatio) blocks.add({a * a, b * b});
    }
    const Estimate estimate = blocks.ratio({1, 0}, {0, 1}, confidence);
    if (!estimate.reliable) continue;
    result.missed += truth < estimate.low || truth > estimate.high;
    result.tails += estimate.p_value(truth) < 0.0005;
    if (!estimate.bounded()) continue;
    ++result.bounded;
    widths.push_back(estimate.high - estimate.low);
  }
  if (!widths.empty() && kind == SeriesKind::kNormal) {
    const auto middle = widths.begin() + static_cast<std::ptrdiff_t>(widths.size() / 2);
    std::nth_element(widths.begin(), middle, widths.end());
    const double inflation = (1 + correlation) / (1 - correlation);
    result.width = *middle / (2 * student_t_quantile(confidence, 1e6) *
                              std::sqrt(inflation / static_cast<double>(length)));
  }
  return result;
}

}  // namespace tycho::analyzer
