#include "comparisons/hyperbola.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "src/statistics/block_averages.h"

namespace tycho::analyzer {
namespace {

struct Problem {
  std::vector<double> batch;
  std::vector<double> log_steps;

  /// Sum of squares for a given ln B_crit, with the best ln S_min.
  double residual(double log_critical, double* log_least) const {
    const double critical = std::exp(log_critical);
    double mean = 0;
    for (size_t i = 0; i < batch.size(); ++i)
      mean += log_steps[i] - std::log1p(critical / batch[i]);
    mean /= static_cast<double>(batch.size());
    double sum = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      const double error = log_steps[i] - std::log1p(critical / batch[i]) - mean;
      sum += error * error;
    }
    if (log_least != nullptr) *log_least = mean;
    return sum;
  }
};

/// Where f crosses `level` between a point below and one above it.
template <typename Function>
double crossing(const Function& f, double below, double above, double level) {
  for (int i = 0; i < 100; ++i) {
    const double middle = 0.5 * (below + above);
    (f(middle) <= level ? below : above) = middle;
  }
  return 0.5 * (below + above);
}

}  // namespace

HyperbolaFit fit_hyperbola(const std::vector<HyperbolaPoint>& points) {
  HyperbolaFit fit;
  Problem problem;
  std::set<double> sizes;
  for (const HyperbolaPoint& point : points) {
    const double batch = point.examples / point.steps;
    if (!(point.steps > 0) || !(batch > 0) || !std::isfinite(batch)) continue;
    problem.batch.push_back(batch);
    problem.log_steps.push_back(std::log(point.steps));
    sizes.insert(std::round(100 * std::log(batch)));
  }
  if (sizes.size() < 3) return fit;
  const auto [least, largest] = std::minmax_element(problem.batch.begin(), problem.batch.end());
  // Beyond a thousand times the range of batch sizes S is constant, or proportional to 1/B, to a
  // part in a thousand: there is nothing more to tell.
  const double from = std::log(*least) - std::log(1e3);
  const double to = std::log(*largest) + std::log(1e3);
  const auto f = [&](double x) { return problem.residual(x, nullptr); };
  // The sum of squares need not have one minimum only: a grid, then a golden section.
  constexpr int kGrid = 400;
  double best = from;
  for (int i = 0; i <= kGrid; ++i) {
    const double x = from + (to - from) * i / kGrid;
    if (f(x) < f(best)) best = x;
  }
  double a = std::max(from, best - (to - from) / kGrid);
  double b = std::min(to, best + (to - from) / kGrid);
  constexpr double kGolden = 0.6180339887498949;
  for (int i = 0; i < 200; ++i) {
    const double c = b - kGolden * (b - a);
    const double d = a + kGolden * (b - a);
    (f(c) < f(d) ? b : a) = f(c) < f(d) ? d : c;
  }
  best = 0.5 * (a + b);
  double log_least = 0;
  const double square = problem.residual(best, &log_least);
  fit.known = std::isfinite(square);
  fit.critical_batch = std::exp(best);
  fit.least_steps = std::exp(log_least);
  const double freedom = static_cast<double>(problem.batch.size()) - 2;
  fit.residual = std::sqrt(square / freedom);
  const double t = student_t_quantile(0.95, freedom);
  const double level = square * (1 + t * t / freedom);
  fit.low = f(from) <= level ? 0 : std::exp(crossing(f, best, from, level));
  fit.high = f(to) <= level ? std::numeric_limits<double>::infinity()
                            : std::exp(crossing(f, best, to, level));
  return fit;
}

}  // namespace tycho::analyzer
