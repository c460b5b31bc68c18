#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "src/loss/loss_stretches.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// Where the loss began: the median of the first three stretches, of which one may be an outlier;
/// at least three.
double start_of(const std::vector<LossStretch>& all);

/// The loss left its range, and came back or did not.
struct LossBreak {
  LossPoint peak;
  int64_t begin = -1;  ///< first step outside
  int64_t back = -1;   ///< first step inside again; -1: it never came back
  double usual = 0;    ///< median of the losses before
  uint64_t count = 0;  ///< losses outside
  double rise() const { return peak.value - usual; }
};

/// The held-out losses, where the trainer gave any.
struct HeldOutLosses {
  uint64_t observed = 0;  ///< finite or not
  uint64_t not_finite = 0;
  LossPoint first, last;    ///< whatever they are
  LossStretches stretches;  ///< of the finite ones
};

/// How the training loss went, in one pass and constant memory: `loss` of the run at every observed
/// step; and the held-out loss (`validation_loss`) beside it. Losses of batches are noisy, may have
/// either sign, and need not be meant to fall.
///
/// Breaks: a loss lies above the median of the last 64 by four times what the largest of
/// them did, by the size of the median, by a tenth of the range of all losses so far and, where all
/// are positive, by 2.5 times what any of the 64 did in logarithms; it ends with the first loss
/// back in that range. The largest kMostBreaks are kept.
///
/// One thread at a time.
class LossCourse {
 public:
  static constexpr size_t kMostBreaks = 16;
  static constexpr size_t kEarly = 32;

  /// An Engine's consumer.
  void observe(const RunContext& context, const Frame& frame);
  /// One loss, with the learning rate of its step where that is known. Steps that go back (a
  /// resumed run) are taken as they come.
  void add(int64_t step, double loss, double rate = kUnknown);
  /// One held-out loss. Where steps go back (a resumed run) it replaces those from its step on.
  void add_held_out(int64_t step, double loss);
  /// The squared norm of all weights at a step: a second witness of a divergence.
  void add_weights(double norm_sq);

  uint64_t observed() const { return observed_; }  ///< losses, finite or not
  uint64_t not_finite() const { return not_finite_; }
  LossPoint first() const { return first_; }    ///< whatever it is
  LossPoint last() const { return last_; }      ///< whatever it is
  LossPoint lowest() const { return lowest_; }  ///< of the finite ones
  LossPoint highest() const { return highest_; }
  LossPoint first_not_finite() const { return first_not_finite_; }
  /// The finite loss before it; step -1: there was none.
  LossPoint before_not_finite() const { return before_not_finite_; }
  /// The first finite loss after the last one that was not; step -1: none came, or none was needed.
  LossPoint finite_again() const { return finite_again_; }
  /// Finite losses, in order.
  std::vector<LossStretch> stretches() const { return stretches_.all(); }
  /// The same, with the first kEarly losses one by one: a run may be lost within the first stretch.
  /// Between them and the next whole stretch some losses may be left out.
  std::vector<LossStretch> stretches_from_the_first() const;
  const HeldOutLosses& held_out() const { return held_out_; }
  /// Breaks that ended, the largest first.
  const std::vector<LossBreak>& breaks() const { return breaks_; }
  uint64_t break_count() const { return break_count_; }
  /// The largest squared norm of the weights over the first one; NaN: not known.
  double weight_growth() const;
  /// The break that has not ended; nullptr: none.
  const LossBreak* open_break() const { return open_.begin >= 0 ? &open_ : nullptr; }

 private:
  void follow_breaks(int64_t step, double loss);

  ColumnIndex column_ = kNoColumn;
  ColumnIndex weights_ = kNoColumn;
  ColumnIndex rate_ = kNoColumn;
  ColumnIndex held_out_column_ = kNoColumn;
  HeldOutLosses held_out_;
  double first_weights_ = kUnknown;
  double largest_weights_ = kUnknown;
  uint64_t observed_ = 0;
  uint64_t not_finite_ = 0;
  LossPoint first_, last_, lowest_, highest_;
  LossPoint first_not_finite_, before_not_finite_, finite_again_;
  std::vector<LossPoint> early_;
  LossStretches stretches_;
  std::vector<double> recent_;  // the last losses that were in their range, as a ring
  size_t next_ = 0;
  LossBreak open_;
  double back_below_ = 0;
  std::vector<LossBreak> breaks_;
  uint64_t break_count_ = 0;
};

}  // namespace tycho::analyzer
