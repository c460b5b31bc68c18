#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace tycho::analyzer {

/// Points of a series, evenly spaced over all that was added and at most `capacity`: for medians
/// and trends in constant memory. Values need not be finite.
class ThinnedSeries {
 public:
  static constexpr size_t kValues = 3;
  struct Point {
    int64_t step = -1;
    std::array<double, kValues> value{};
  };

  explicit ThinnedSeries(size_t capacity = 256) : capacity_(capacity) {}

  void add(const std::array<double, kValues>& value, int64_t step) {
    if (to_skip_ > 0) {
      --to_skip_;
      return;
    }
    if (points_.size() == capacity_) {
      for (size_t i = 0; 2 * i < points_.size(); ++i) points_[i] = points_[2 * i];
      points_.resize((points_.size() + 1) / 2);
      stride_ *= 2;
    }
    points_.push_back({step, value});
    to_skip_ = stride_ - 1;
  }

  const std::vector<Point>& points() const { return points_; }

  /// Median of one value over the points from `begin` to `end`, those that are not finite left out;
  /// NaN where there are none.
  double median(size_t series, size_t begin, size_t end) const {
    std::vector<double> sorted;
    for (size_t i = begin; i < end && i < points_.size(); ++i) {
      if (std::isfinite(points_[i].value[series])) sorted.push_back(points_[i].value[series]);
    }
    if (sorted.empty()) return __builtin_nan("");
    std::sort(sorted.begin(), sorted.end());
    const size_t middle = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
  }

  /// Did one value rise over the recent half, by 2 % at least and by more than its scatter? Where
  /// it ends infinite it did.
  bool rises(size_t series) const {
    const size_t size = points_.size();
    if (size == 0) return false;
    if (std::isinf(points_.back().value[series])) return true;
    const size_t half = size / 2;
    const size_t middle = half + (size - half) / 2;
    const double before = median(series, half, middle);
    const double after = median(series, middle, size);
    const double scatter = std::hypot(median_error(series, half, middle, before),
                                      median_error(series, middle, size, after));
    return after - before > std::max(0.02 * std::fabs(before), 2 * scatter);
  }

 private:
  /// Standard error of a median of independent Gaussian values, from their absolute deviations.
  double median_error(size_t series, size_t begin, size_t end, double median) const {
    std::vector<double> deviation;
    for (size_t i = begin; i < end; ++i) {
      const double value = points_[i].value[series];
      if (std::isfinite(value)) deviation.push_back(std::fabs(value - median));
    }
    if (deviation.empty()) return 0;
    const auto middle = deviation.begin() + static_cast<std::ptrdiff_t>(deviation.size() / 2);
    std::nth_element(deviation.begin(), middle, deviation.end());
    return 1.4826 * 1.2533 * *middle / std::sqrt(static_cast<double>(deviation.size()));
  }

  size_t capacity_;
  uint64_t stride_ = 1;
  uint64_t to_skip_ = 0;
  std::vector<Point> points_;
};

}  // namespace tycho::analyzer
