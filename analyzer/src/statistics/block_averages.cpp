#include "src/statistics/block_averages.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "src/statistics/long_run_variance.h"

namespace tycho::analyzer {
namespace {

using Weights = std::array<double, BlockAverages::kMaxSeries>;

constexpr size_t kSeries = BlockAverages::kMaxSeries;
/// Of the probability that the blocks do not tell their correlation time.
constexpr double kLargestDoubt = 0.05;
constexpr double kTogether = 1e-3;

double dot(const Weights& weights, const Weights& values) {
  double sum = 0;
  for (size_t s = 0; s < kSeries; ++s) sum += weights[s] * values[s];
  return sum;
}

double average(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? kUnknown : sum / static_cast<double>(values.size());
}

/// Sum of products of deviations / (n - 1).
double covariance(const std::vector<double>& a, const std::vector<double>& b) {
  const double mean_a = average(a);
  const double mean_b = average(b);
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - mean_a) * (b[i] - mean_b);
  return sum / (static_cast<double>(a.size()) - 1);
}

void merge_pairs(std::vector<double>& x) {
  const size_t pairs = x.size() / 2;
  // Of an odd number the oldest is left out: a transient is there, if anywhere.
  const size_t skip = x.size() % 2;
  for (size_t i = 0; i < pairs; ++i) x[i] = 0.5 * (x[skip + 2 * i] + x[skip + 2 * i + 1]);
  x.resize(pairs);
}

/// Smallest and largest ratio of the sums over eight consecutive parts; NaN for fewer values.
std::pair<double, double> range_of_parts(const std::vector<double>& y,
                                         const std::vector<double>& x) {
  constexpr size_t kParts = BlockAverages::kMinBlocks;
  if (x.size() < kParts) return {kUnknown, kUnknown};
  std::pair<double, double> range{Estimate::kInfinity, -Estimate::kInfinity};
  size_t above = 0;
  for (size_t part = 0; part < kParts; ++part) {
    double numerator = 0;
    double denominator = 0;
    for (size_t i = part * x.size() / kParts; i < (part + 1) * x.size() / kParts; ++i) {
      numerator += y[i];
      denominator += x[i];
    }
    range.first = std::min(range.first, numerator / denominator);
    range.second = std::max(range.second, numerator / denominator);
    above += denominator > 0;
  }
  // Through infinity, where the denominator changes its sign.
  if (above != 0 && above != kParts) return {-Estimate::kInfinity, Estimate::kInfinity};
  return range;
}

struct Moments {
  double skewness = 0;  ///< of the mean
  double kurtosis = 0;  ///< excess, of the values, over their number; never below 0
};

/// Third and fourth moment, unbiased for independent Gaussian values. What is correlated is merged
/// first, down to 8 values.
Moments moments(std::vector<double> values, double inflation) {
  const double independent = static_cast<double>(values.size()) / std::max(1.0, inflation);
  while (values.size() >= 2 * BlockAverages::kMinBlocks &&
         static_cast<double>(values.size()) > 1.5 * independent) {
    merge_pairs(values);
  }
  const auto n = static_cast<double>(values.size());
  const double mean = average(values);
  double second = 0;
  double third = 0;
  double fourth = 0;
  for (const double value : values) {
    const double square = (value - mean) * (value - mean);
    second += square / n;
    third += square * (value - mean) / n;
    fourth += square * square / n;
  }
  Moments result;
  if (!(second > 0)) return result;
  const double skewness = third / std::pow(second, 1.5) * std::sqrt(n * (n - 1)) / (n - 2);
  const double kurtosis =
      ((n + 1) * (fourth / (second * second) - 3) + 6) * (n - 1) / ((n - 2) * (n - 3));
  result.skewness = skewness / std::sqrt(n);
  result.kurtosis = std::max(0.0, kurtosis) / n;
  return result;
}

}  // namespace

void BlockAverages::complete_block() {
  Block block;
  block.begin = current_begin_;
  for (size_t s = 0; s < series_; ++s) {
    block.mean[s] = current_[s] / static_cast<double>(block_length_);
  }
  blocks_.push_back(block);
  current_ = {};
  in_current_ = 0;
  if (blocks_.size() < max_blocks_) return;
  for (size_t i = 0; i < max_blocks_ / 2; ++i) {
    const Block& first = blocks_[2 * i];
    const Block& second = blocks_[2 * i + 1];
    Block merged;
    merged.begin = first.begin;
    for (size_t s = 0; s < series_; ++s) merged.mean[s] = 0.5 * (first.mean[s] + second.mean[s]);
    blocks_[i] = merged;
  }
  blocks_.resize(max_blocks_ / 2);
  block_length_ *= 2;
}

void BlockAverages::clear() {
  observations_ = 0;
  not_finite_ = 0;
  block_length_ = 1;
  in_current_ = 0;
  current_ = {};
  last_step_ = -1;
  blocks_.clear();
}

Estimate BlockAverages::mean(const Weights& weights, double confidence) const {
  std::vector<double> x;
  for (size_t i = first_used(); i < blocks_.size(); ++i) x.push_back(dot(weights, blocks_[i].mean));
  const size_t count = x.size();
  return estimate(std::move(x), std::vector<double>(count, 1), confidence, 0);
}

Estimate BlockAverages::ratio(const Weights& numerator, const Weights& denominator,
                              double confidence, double correlation_time) const {
  std::vector<double> y;
  std::vector<double> x;
  for (size_t i = first_used(); i < blocks_.size(); ++i) {
    y.push_back(dot(numerator, blocks_[i].mean));
    x.push_back(dot(denominator, blocks_[i].mean));
  }
  return estimate(std::move(y), std::move(x), confidence, correlation_time);
}

std::pair<double, double> BlockAverages::range_of_ratio(const Weights& numerator,
                                                        const Weights& denominator) const {
  std::vector<double> y;
  std::vector<double> x;
  for (size_t i = first_used(); i < blocks_.size(); ++i) {
    y.push_back(dot(numerator, blocks_[i].mean));
    x.push_back(dot(denominator, blocks_[i].mean));
  }
  return range_of_parts(y, x);
}

Estimate BlockAverages::estimate(std::vector<double> y, std::vector<double> x, double confidence,
                                 double correlation_time) const {
  Estimate result;
  result.observations = observations_;
  const double mean_y = average(y);
  const double mean_x = average(x);
  result.value = mean_y / mean_x;
  result.blocks = x.size();
  result.low = -Estimate::kInfinity;
  result.high = Estimate::kInfinity;
  auto length = static_cast<double>(block_length_);
  for (; length < correlation_time && x.size() > 1; length *= 2) {
    merge_pairs(x);
    merge_pairs(y);
  }
  result.blocks = x.size();
  if (x.size() < kMinBlocks) return result;
  std::vector<double> residual(x.size());
  for (size_t i = 0; i < x.size(); ++i) residual[i] = y[i] - result.value * x[i];
  const LongRunVariance spread = long_run_variance(residual);
  const Moments shape = moments(residual, spread.inflation);
  const double scale = spread.inflation / static_cast<double>(x.size());
  const double var_x = covariance(x, x) * scale;
  const double var_y = covariance(y, y) * scale;
  const double cov = covariance(x, y) * scale;
  const double r = result.value;
  const double square = mean_x * mean_x;
  result.standard_error = std::sqrt(std::max(0.0, var_y - 2 * r * cov + r * r * var_x) / square);
  result.denominator_variance = var_x / square;
  result.denominator_covariance = (cov - r * var_x) / square;
  result.degrees_of_freedom = 2 / (2 / spread.degrees_of_freedom + shape.kurtosis);
  result.skewness = mean_x > 0 ? shape.skewness : -shape.skewness;
  result.reliable = spread.too_slow <= kLargestDoubt;
  if (!result.reliable) std::tie(result.low, result.high) = range_of_parts(y, x);
  if (!result.reliable || std::isnan(r)) return result;
  // Fieller: all R whose (mean_y - R mean_x) / sd(mean_y - R mean_x) lies between the quantiles.
  const double t = student_t_quantile(confidence, result.degrees_of_freedom);
  const double above = std::max(0.0, skewed(t, result.skewness));
  const double below = std::min(0.0, skewed(-t, result.skewness));
  const auto limit = [&](double quantile, double side) {
    const double a = square - quantile * quantile * var_x;
    const double b = mean_x * mean_y - quantile * quantile * cov;
    const double c = mean_y * mean_y - quantile * quantile * var_y;
    if (!(a > 0)) {
      // The denominator is not resolved from 0, which does not matter where numerator and
      // denominator go together to a thousandth.
      const bool together = result.standard_error <= kTogether * std::fabs(r);
      return together ? r + side * std::fabs(quantile) * result.standard_error
                      : side * Estimate::kInfinity;
    }
    return (b + side * std::sqrt(std::max(0.0, b * b - a * c))) / a;
  };
  result.low = limit(above, -1);
  result.high = limit(below, 1);
  return result;
}

}  // namespace tycho::analyzer
