#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "src/statistics/estimate.h"

namespace tycho::analyzer {

/// Streaming averages of up to four series observed together, in a fixed number of blocks (32 to
/// 63): when 64 are full, neighbours are merged and the block length doubles, so that memory is
/// constant and blocks soon exceed the correlation time (Flyvbjerg and Petersen 1989).
///
/// Intervals: the variance of the mean from the spectrum of the blocks (long_run_variance.h), and
/// corrected for skewness by Hall's transformation, which moves the interval towards the long tail;
/// its degrees of freedom are lowered where the blocks have heavy tails. Not reliable with fewer
/// than 8 blocks, and where the blocks do not tell their correlation time from their number, as for
/// a series with a trend (see Estimate). Assumed: the series is stationary. Observations
/// count equally whatever the number of steps between them: a gap or a coarser cadence makes
/// neighbours less correlated, never more, but a cadence that depends on the values would bias the
/// average.
///
/// An observation with a value that is not finite is left out as a whole and counted.
class BlockAverages {
 public:
  static constexpr size_t kMinBlocks = 8;
  static constexpr size_t kMaxSeries = 4;

  /// `series`: 1 to kMaxSeries. `max_blocks`: even. Of the blocks, the oldest `forgotten` share (0
  /// to 1/2) is left out of estimates.
  explicit BlockAverages(size_t series = 1, size_t max_blocks = 64, double forgotten = 0)
      : series_(series), max_blocks_(max_blocks), forgotten_(forgotten) {}

  /// Adds one observation of all series. O(series), no allocation after the first.
  void add(const std::array<double, kMaxSeries>& values, int64_t step = -1) {
    for (size_t s = 0; s < series_; ++s) {
      if (!(values[s] - values[s] == 0)) {
        ++not_finite_;
        return;
      }
    }
    if (in_current_ == 0) current_begin_ = step;
    last_step_ = step;
    for (size_t s = 0; s < series_; ++s) current_[s] += values[s];
    ++observations_;
    if (++in_current_ == block_length_) complete_block();
  }

  uint64_t observations() const { return observations_; }
  uint64_t not_finite() const { return not_finite_; }
  void clear();
  /// First step of the blocks that estimates use, and the last step added; -1: none.
  int64_t window_begin() const { return blocks_.empty() ? -1 : blocks_[first_used()].begin; }
  int64_t window_end() const { return last_step_; }

  /// Mean of sum_s weights[s] x_s.
  Estimate mean(const std::array<double, kMaxSeries>& weights, double confidence = 0.95) const;

  /// <a . x> / <b . x>: the ratio of means, never the mean of ratios. The interval is Fieller's,
  /// and unbounded where the denominator is not resolved from zero. `correlation_time`, in
  /// observations, is what is known beforehand: with fewer than 8 blocks of that length there is no
  /// interval.
  Estimate ratio(const std::array<double, kMaxSeries>& numerator,
                 const std::array<double, kMaxSeries>& denominator, double confidence = 0.95,
                 double correlation_time = 0) const;

  /// Smallest and largest of that ratio over the eight consecutive parts of the window: whether a
  /// ratio that changes, and so has no interval, lies on one side of a value throughout. NaN with
  /// fewer than 8 blocks.
  std::pair<double, double> range_of_ratio(const std::array<double, kMaxSeries>& numerator,
                                           const std::array<double, kMaxSeries>& denominator) const;

 private:
  struct Block {
    std::array<double, kMaxSeries> mean{};  ///< over block_length_ observations
    int64_t begin = -1;                     ///< first step
  };

  void complete_block();
  Estimate estimate(std::vector<double> y, std::vector<double> x, double confidence,
                    double correlation_time) const;
  size_t first_used() const {
    return static_cast<size_t>(forgotten_ * static_cast<double>(blocks_.size()));
  }

  size_t series_;
  size_t max_blocks_;
  double forgotten_;
  uint64_t observations_ = 0;
  uint64_t not_finite_ = 0;
  uint64_t block_length_ = 1;
  uint64_t in_current_ = 0;
  std::array<double, kMaxSeries> current_{};
  int64_t current_begin_ = -1;
  int64_t last_step_ = -1;
  std::vector<Block> blocks_;
};

}  // namespace tycho::analyzer
