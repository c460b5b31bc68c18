#pragma once

#include <array>
#include <cstdint>

#include "src/statistics/block_averages.h"

namespace tycho::analyzer {

/// Block averages over the last half of what was added, in constant memory: transients are
/// forgotten as the series grows.
class RecentHalf {
 public:
  explicit RecentHalf(size_t series = 1) : blocks_(series, 128, 0.5) {}

  void add(const std::array<double, BlockAverages::kMaxSeries>& values, int64_t step) {
    blocks_.add(values, step);
  }

  void clear() { blocks_.clear(); }
  const BlockAverages& blocks() const { return blocks_; }
  int64_t window_begin() const { return blocks_.window_begin(); }
  int64_t window_end() const { return blocks_.window_end(); }

 private:
  BlockAverages blocks_;
};

}  // namespace tycho::analyzer
