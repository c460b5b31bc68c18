#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "src/compare/step_grid.h"
#include "src/schedule/loss_curve.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// Loss and learning rate of a run in one pass and bounded memory: means over the bins of
/// kFineGrid, at most 3.2 % of the step wide, which do not depend on what comes later. A bin is
/// divided where the learning rate jumps by a tenth of its peak, at most kMostJumps times, and the
/// place of the jump is kept.
///
/// The sum of the learning rates is over all steps: between two observed steps the rate is taken to
/// change evenly, or, where it jumps, at the second. Of a run that goes back (resumed from a
/// checkpoint) what came after that step is forgotten. One thread at a time.
class ScheduleRecord {
 public:
  static constexpr size_t kMostJumps = 64;

  void begin(const RunContext& context);
  /// Takes `loss` and `learning_rate` of the run, or the rate of the first parameter group.
  void observe(const Frame& frame);
  /// One loss at one rate.
  void add(int64_t step, double rate, double loss);

  uint64_t losses() const { return losses_; }  ///< finite ones
  uint64_t not_positive() const {
    return not_positive_;
  }  ///< losses that are not finite or above 0
  uint64_t without_rate() const { return without_rate_; }  ///< finite losses, the rate not known
  double peak_rate() const { return peak_; }
  int64_t last_step() const { return last_step_; }

  /// A point for each bin. The error of ln(loss) is by the differences of successive losses over a
  /// dozen bins: a trend does not add to it, nor does noise that is correlated from one observation
  /// to the next.
  LossCurve curve() const;

 private:
  struct Bin {
    size_t index = 0;
    uint64_t part = 0;  // of a divided bin
    uint64_t count = 0;
    double step = 0;  // means
    double rate = 0;
    double sum = 0;
    double loss = 0;
    double differences = 0;  // sum of squares of those of ln(loss)
    uint64_t compared = 0;
  };
  void go_back(int64_t step);

  ColumnIndex loss_ = kNoColumn;
  ColumnIndex rate_ = kNoColumn;
  std::vector<Bin> bins_;
  uint64_t losses_ = 0;
  uint64_t not_positive_ = 0;
  uint64_t without_rate_ = 0;
  uint64_t parts_ = 0;
  int64_t last_step_ = -1;
  double last_rate_ = 0;
  double last_sum_ = 0;
  double last_log_ = kNoLog;
  double peak_ = 0;
  static constexpr double kNoLog = 1e300;
};

}  // namespace tycho::analyzer
