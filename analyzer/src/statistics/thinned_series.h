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

 private:
  size_t capacity_;
  uint64_t stride_ = 1;
  uint64_t to_skip_ = 0;
  std::vector<Point> points_;
};

}  // namespace tycho::analyzer
