#include "src/statistics/block_averages.h"

#include <algorithm>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>

namespace tycho::analyzer {
namespace {

using Weights = std::array<double, BlockAverages::kMaxSeries>;

constexpr size_t kSeries = BlockAverages::kMaxSeries;

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

/// Lag-1 autocorrelation, corrected for the bias -1/n that subtracting the mean causes.
double lag_one_correlation(const std::vector<double>& x) {
  const double mean = average(x);
  double product = 0;
  double square = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    square += (x[i] - mean) * (x[i] - mean);
    if (i > 0) product += (x[i] - mean) * (x[i - 1] - mean);
  }
  return square > 0 ? product / square + 1 / static_cast<double>(x.size()) : 0;
}

void merge_pairs(std::vector<double>& x) {
  const size_t pairs = x.size() / 2;
  // Of an odd number the oldest is left out: a transient is there, if anywhere.
  const size_t skip = x.size() % 2;
  for (size_t i = 0; i < pairs; ++i) x[i] = 0.5 * (x[skip + 2 * i] + x[skip + 2 * i + 1]);
  x.resize(pairs);
}

/// Above this, the lag-1 correlation of n blocks is more than chance and blocks are merged.
double tolerated_correlation(size_t blocks) {
  return std::max(0.1, 0.6 / std::sqrt(static_cast<double>(blocks)));
}

/// At the last level of merging: correlation beyond this means that the series is shorter than a
/// few correlation times, or drifts.
constexpr double kLargestCorrelation = 0.45;

double variance_inflation(double correlation) { return std::max(1.0, 1 + 2 * correlation); }

}  // namespace

double student_t_quantile(double confidence, double degrees_of_freedom) {
  if (!(degrees_of_freedom > 0)) return Estimate::kInfinity;
  const boost::math::students_t distribution(degrees_of_freedom);
  return boost::math::quantile(boost::math::complement(distribution, (1 - confidence) / 2));
}

double student_t_tail(double t, double degrees_of_freedom) {
  if (!(degrees_of_freedom > 0) || std::isnan(t)) return kUnknown;
  if (std::isinf(t)) return t > 0 ? 0 : 1;
  const boost::math::students_t distribution(degrees_of_freedom);
  return boost::math::cdf(boost::math::complement(distribution, t));
}

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
  Estimate result;
  result.observations = observations_;
  std::vector<double> x;
  for (size_t i = first_used(); i < blocks_.size(); ++i) {
    x.push_back(dot(weights, blocks_[i].mean));
  }
  result.value = average(x);
  result.blocks = x.size();
  if (x.size() < kMinBlocks) return result;
  double correlation = lag_one_correlation(x);
  while (x.size() >= 2 * kMinBlocks && correlation > tolerated_correlation(x.size())) {
    merge_pairs(x);
    correlation = lag_one_correlation(x);
  }
  result.blocks = x.size();
  const double count = static_cast<double>(x.size());
  result.standard_error = std::sqrt(covariance(x, x) / count * variance_inflation(correlation));
  result.degrees_of_freedom = (count - 1) / variance_inflation(correlation);
  const double half =
      student_t_quantile(confidence, result.degrees_of_freedom) * result.standard_error;
  result.low = result.value - half;
  result.high = result.value + half;
  result.reliable = correlation < kLargestCorrelation;
  return result;
}

Estimate BlockAverages::ratio(const Weights& numerator, const Weights& denominator,
                              double confidence) const {
  Estimate result;
  result.observations = observations_;
  std::vector<double> y;
  std::vector<double> x;
  for (size_t i = first_used(); i < blocks_.size(); ++i) {
    y.push_back(dot(numerator, blocks_[i].mean));
    x.push_back(dot(denominator, blocks_[i].mean));
  }
  const double mean_y = average(y);
  const double mean_x = average(x);
  result.value = mean_y / mean_x;
  result.blocks = x.size();
  if (x.size() < kMinBlocks) return result;
  const auto residual_correlation = [&] {
    std::vector<double> residual(x.size());
    for (size_t i = 0; i < x.size(); ++i) residual[i] = y[i] - result.value * x[i];
    return lag_one_correlation(residual);
  };
  double correlation = residual_correlation();
  while (x.size() >= 2 * kMinBlocks && correlation > tolerated_correlation(x.size())) {
    merge_pairs(x);
    merge_pairs(y);
    correlation = residual_correlation();
  }
  result.blocks = x.size();
  const double count = static_cast<double>(x.size());
  const double scale = variance_inflation(correlation) / count;
  const double var_x = covariance(x, x) * scale;
  const double var_y = covariance(y, y) * scale;
  const double cov = covariance(x, y) * scale;
  result.degrees_of_freedom = (count - 1) / variance_inflation(correlation);
  result.reliable = correlation < kLargestCorrelation;
  const double r = result.value;
  result.standard_error =
      std::sqrt(std::max(0.0, var_y - 2 * r * cov + r * r * var_x)) / std::fabs(mean_x);
  // Fieller: all R with (mean_y - R mean_x)^2 <= t^2 Var(mean_y - R mean_x).
  const double t = student_t_quantile(confidence, result.degrees_of_freedom);
  const double a = mean_x * mean_x - t * t * var_x;
  const double b = mean_x * mean_y - t * t * cov;
  const double c = mean_y * mean_y - t * t * var_y;
  if (!(a > 0)) {
    result.low = -Estimate::kInfinity;
    result.high = Estimate::kInfinity;
    return result;
  }
  const double root = std::sqrt(std::max(0.0, b * b - a * c));
  result.low = (b - root) / a;
  result.high = (b + root) / a;
  return result;
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
  const double beyond = std::max(low - estimate.value, estimate.value - high);
  if (beyond <= 0) return 1;
  if (!(estimate.standard_error > 0)) return 0;
  return student_t_tail(beyond / estimate.standard_error, estimate.degrees_of_freedom);
}

}  // namespace tycho::analyzer
