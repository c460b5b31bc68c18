#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// An estimate from a time series, with an interval that accounts for its autocorrelation.
struct Estimate {
  double value = kUnknown;  ///< over all complete blocks; NaN where there are none
  double low = kUnknown;    ///< limits of the interval; -inf or +inf where unbounded
  double high = kUnknown;
  double standard_error = kUnknown;
  double degrees_of_freedom = 0;
  size_t blocks = 0;  ///< blocks the interval rests on, after merging
  uint64_t observations = 0;
  /// The interval can be believed: enough blocks, and neighbouring blocks no longer correlated.
  /// False also for a series with a trend. A consumer then says UNDERPOWERED.
  bool reliable = false;
  bool bounded() const { return low > -kInfinity && high < kInfinity; }
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
};

/// Streaming averages of up to four series observed together, in a fixed number of blocks (32 to
/// 63): when 64 are full, neighbours are merged and the block length doubles, so that memory is
/// constant and blocks soon exceed the correlation time (Flyvbjerg and Petersen 1989).
///
/// Intervals merge blocks further, down to 8, until neighbouring blocks are not correlated; what
/// correlation remains widens the interval by the factor 1 + 2 r1 on the variance, with r1 the
/// lag-1 correlation of the blocks corrected for its bias of -1/n. Assumed: the series is
/// stationary, and blocks are nearly Gaussian (they are averages). Observations count equally
/// whatever the number of steps between them: a gap or a coarser cadence makes neighbours less
/// correlated, never more, but a cadence that depends on the values would bias the average.
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
  /// exact for Gaussian blocks and unbounded where the denominator is not resolved from zero.
  Estimate ratio(const std::array<double, kMaxSeries>& numerator,
                 const std::array<double, kMaxSeries>& denominator, double confidence = 0.95) const;

 private:
  struct Block {
    std::array<double, kMaxSeries> mean{};  ///< over block_length_ observations
    int64_t begin = -1;                     ///< first step
  };

  void complete_block();
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

/// Two-sided quantile: P(|t| <= result) = confidence. Infinity for no degrees of freedom.
double student_t_quantile(double confidence, double degrees_of_freedom);

/// P(T > t), one-sided.
double student_t_tail(double t, double degrees_of_freedom);

/// The decision of the verdict grammar for a positive quantity against its prediction:
/// HOLDS where the whole interval lies within a factor 1 + tolerance of the prediction, VIOLATED
/// where it lies wholly outside, else UNDERPOWERED (and wherever the estimate is not reliable).
Verdict judge(const Estimate& estimate, double predicted, double tolerance);

/// The same against an explicit band [low, high].
Verdict judge_band(const Estimate& estimate, double low, double high);

/// One-sided p-value of an estimate outside [low, high]: of a deviation this large if the truth
/// were at the nearer edge. 1 inside the band; NaN where the estimate is not reliable.
double band_p_value(const Estimate& estimate, double low, double high);

}  // namespace tycho::analyzer
