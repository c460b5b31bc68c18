#pragma once

#include <cstdint>
#include <vector>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// A loss with the step at which it was observed; step -1: none.
struct LossPoint {
  int64_t step = -1;
  double value = kUnknown;
};

/// Consecutive observed losses, merged.
struct LossStretch {
  int64_t begin = -1;  ///< first step
  int64_t end = -1;    ///< last step
  uint64_t count = 0;  ///< finite losses
  double mean = 0;     ///< of the finite losses
  double square = 0;   ///< sum of squared deviations from the mean
  LossPoint lowest;
  LossPoint highest;
  double rate = kUnknown;  ///< mean learning rate; NaN where it was not always known
  /// Standard deviation of single losses; 0 for fewer than two.
  double deviation() const;
};

/// A stretch of one loss.
LossStretch single_loss(const LossPoint& point, double rate = kUnknown);

/// A series of finite losses in constant memory: at most kMost stretches of equal numbers of
/// losses; neighbours are merged when they are full. Fewer losses than that are kept as they are.
/// One thread at a time.
class LossStretches {
 public:
  static constexpr size_t kMost = 256;  // even

  void add(const LossPoint& point, double rate = kUnknown);
  /// Forgets the losses from this step on; of a stretch that begins before it nothing.
  void rewind(int64_t step);
  /// In order; the last one may be up to half again as long as the others, or half as long.
  std::vector<LossStretch> all() const;
  uint64_t per_stretch() const { return per_stretch_; }

 private:
  std::vector<LossStretch> closed_;
  LossStretch filling_;
  uint64_t per_stretch_ = 1;
};

}  // namespace tycho::analyzer
