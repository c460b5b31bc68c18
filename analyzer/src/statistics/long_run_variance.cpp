#include "src/statistics/long_run_variance.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kWhitePrior = 0.6;
constexpr double kBluePrior = 0.1;
constexpr double kSlowPrior = 1 - kWhitePrior - kBluePrior;
constexpr double kTimeStep = 1.5;  // of the grid of correlation times
constexpr double kWhiteShares[] = {0, 0.1, 0.3, 0.6};
constexpr double kBlueDepths[] = {0.3, 0.1, 0.03, 0.01};
constexpr double kFewValues = 4;
constexpr double kSmallWeight = 1e-4;
constexpr double kRounding = 1e-15;

/// Squared coefficients of the orthonormal cosine transform of the deviations from the mean, the
/// first `trend` left out.
std::vector<double> periodogram(const std::vector<double>& series, size_t trend) {
  const size_t n = series.size();
  double mean = 0;
  for (const double value : series) mean += value / static_cast<double>(n);
  std::vector<double> cosine(4 * n);
  for (size_t i = 0; i < 4 * n; ++i)
    cosine[i] = std::cos(kPi * static_cast<double>(i) / (2 * static_cast<double>(n)));
  std::vector<double> result(n - 1 - trend);
  for (size_t j = 1 + trend; j < n; ++j) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += (series[i] - mean) * cosine[j * (2 * i + 1) % (4 * n)];
    result[j - 1 - trend] = 2 * sum * sum / static_cast<double>(n);
  }
  return result;
}

struct Shape {
  double log_weight = 0;
  double inflation = 1;  ///< of the variance of the mean
  double weight = 0;
  bool slow = false;
};

/// Holds the periodogram against spectral densities that are 1 at frequency 0.
class Shapes {
 public:
  Shapes(std::vector<double> periodogram, size_t trend) : periodogram_(std::move(periodogram)) {
    for (const double square : periodogram_) total_ += square;
    const size_t n = periodogram_.size() + 1 + trend;
    for (size_t j = 1 + trend; j < n; ++j)
      rise_.push_back(1 - std::cos(kPi * static_cast<double>(j) / static_cast<double>(n)));
  }

  template <typename Density>
  void add(double prior, const Density& density) {
    const auto freedom = static_cast<double>(periodogram_.size());
    double scaled = 0;
    double product = 1;
    double log_product = 0;
    double mean = 0;
    for (size_t j = 0; j < periodogram_.size(); ++j) {
      const double f = density(rise_[j]);
      scaled += periodogram_[j] / f;
      mean += f / freedom;
      product *= f;
      if (j % 8 == 7) {
        log_product += std::log(product);
        product = 1;
      }
    }
    log_product += std::log(product);
    Shape shape;
    shape.inflation = scaled / total_;
    shape.log_weight =
        std::log(prior) - 0.5 * log_product - 0.5 * freedom * std::log(shape.inflation);
    shape.slow = mean * (freedom + 1) < kFewValues;
    shapes_.push_back(shape);
  }

  /// The probable ones, with weights that add up to 1.
  std::vector<Shape> posterior() const {
    double largest = shapes_.front().log_weight;
    for (const Shape& shape : shapes_) largest = std::max(largest, shape.log_weight);
    std::vector<Shape> result;
    double sum = 0;
    for (Shape shape : shapes_) {
      shape.weight = std::exp(shape.log_weight - largest);
      if (shape.weight < kSmallWeight) continue;
      sum += shape.weight;
      result.push_back(shape);
    }
    for (Shape& shape : result) shape.weight /= sum;
    return result;
  }

  /// Whether no value is further than `distance` from the mean, on average.
  bool within(double distance) const {
    return total_ <= distance * distance * static_cast<double>(periodogram_.size());
  }

 private:
  std::vector<double> periodogram_;
  std::vector<double> rise_;  ///< 1 - cos of the frequency
  double total_ = 0;
  std::vector<Shape> shapes_;
};

/// Two-sided quantile of the mixture, in units of the standard error of white noise.
double mixture_quantile(const std::vector<Shape>& shapes, double freedom, double confidence) {
  const double target = 0.5 * (1 - confidence);
  double least = shapes.front().inflation;
  double largest = least;
  for (const Shape& shape : shapes) {
    least = std::min(least, shape.inflation);
    largest = std::max(largest, shape.inflation);
  }
  const double quantile = student_t_quantile(confidence, freedom);
  double low = 0.99 * quantile * std::sqrt(least);
  double high = 1.01 * quantile * std::sqrt(largest);
  while (high > 1.001 * low) {
    const double middle = std::sqrt(low * high);
    double tail = 0;
    for (const Shape& shape : shapes)
      tail += shape.weight * fast_student_t_tail(middle / std::sqrt(shape.inflation), freedom);
    (tail > target ? low : high) = middle;
  }
  return std::sqrt(low * high);
}

}  // namespace

LongRunVariance long_run_variance(const std::vector<double>& series, size_t trend) {
  LongRunVariance result;
  if (series.size() < static_cast<size_t>(kFewValues) + trend) return result;
  const auto freedom = static_cast<double>(series.size() - 1 - trend);
  Shapes shapes(periodogram(series, trend), trend);
  double largest = 0;
  for (const double value : series) largest = std::max(largest, std::fabs(value));
  if (shapes.within(kRounding * largest)) return {1, freedom, 0};
  shapes.add(kWhitePrior, [](double) { return 1.0; });
  const double blue = kBluePrior / static_cast<double>(std::size(kBlueDepths));
  for (const double depth : kBlueDepths)
    shapes.add(blue, [&](double rise) { return 1 + (1 / depth - 1) * rise / 2; });
  const auto times = std::floor(std::log(freedom + 1) / std::log(kTimeStep));
  const double slow = kSlowPrior / (times * static_cast<double>(std::size(kWhiteShares)));
  for (double k = 1; k <= times; ++k) {
    const double time = std::pow(kTimeStep, k);
    const double phi = (time - 1) / (time + 1);
    const double steepness = 2 * phi / ((1 - phi) * (1 - phi));
    for (const double white : kWhiteShares)
      shapes.add(slow, [&](double rise) { return white + (1 - white) / (1 + steepness * rise); });
  }
  const std::vector<Shape> posterior = shapes.posterior();
  result.too_slow = 0;
  for (const Shape& shape : posterior) result.too_slow += shape.slow ? shape.weight : 0;
  const double narrow = mixture_quantile(posterior, freedom, 0.95);
  const double wide = mixture_quantile(posterior, freedom, 0.999);
  result.degrees_of_freedom = std::min(freedom, freedom_of_quantile_ratio(wide / narrow));
  const double error = narrow / student_t_quantile(0.95, result.degrees_of_freedom);
  result.inflation = error * error;
  return result;
}

}  // namespace tycho::analyzer
