#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "src/statistics/block_averages.h"

namespace tycho::analyzer {

/// Block averages over the recent part of a series, in constant memory: between the last half and
/// the last three quarters of what was added. Transients are forgotten as the series grows.
class RecentHalf {
 public:
  explicit RecentHalf(size_t series = 1) : window_(series), next_(series) {}

  void add(const std::array<double, BlockAverages::kMaxSeries>& values, int64_t step) {
    window_.add(values);
    next_.add(values);
    if (window_begin_ < 0) window_begin_ = step;
    if (next_begin_ < 0) next_begin_ = step;
    last_step_ = std::max(last_step_, step);
    if (next_.observations() < next_length_) return;
    window_ = next_;
    window_begin_ = next_begin_;
    // The window now holds the last next_length_ of all `total`; the next one starts here.
    total_ += next_length_;
    next_length_ = total_;
    next_.clear();
    next_begin_ = -1;
  }

  const BlockAverages& blocks() const { return window_; }
  int64_t window_begin() const { return window_begin_; }
  int64_t window_end() const { return last_step_; }

 private:
  static constexpr uint64_t kFirstLength = 64;
  BlockAverages window_;
  BlockAverages next_;
  int64_t window_begin_ = -1;
  int64_t next_begin_ = -1;
  int64_t last_step_ = -1;
  uint64_t total_ = 0;
  uint64_t next_length_ = kFirstLength;
};

}  // namespace tycho::analyzer
