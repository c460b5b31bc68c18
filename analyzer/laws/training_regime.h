#pragma once

#include <string>

#include "src/statistics/noise_scale_series.h"
#include "src/statistics/recent_half.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// Are steps taken on (nearly) all of the data? Laws of full-batch training ask.
///
/// Full: the loss of a step is the probe loss after the step before, which has the same parameters;
/// two batches agree so closely by chance only. Where no two steps in a row are observed: the probe
/// loss after a step differs from the loss of the step by no more than the step explains, twice
/// |g.dtheta|, at steps where that is below half a per cent of the loss. Large: the batch exceeds
/// the noise scale tenfold, so that noise is at most a tenth of the signal in |g_B|^2. The noise
/// scale is that of the frame observed last, with its interval, as the report shows it.
class BatchRegime {
 public:
  enum class Kind { kUnknown, kSmall, kLarge, kFull };

  void begin(const RunContext& context);
  void observe(const Frame& frame);

  Kind kind() const;
  /// As kind() == kFull, at no cost: for every frame.
  bool is_full() const;
  bool is_large() const { return kind() == Kind::kLarge || kind() == Kind::kFull; }
  /// How it was decided, in words.
  std::string describe() const;
  /// Where the batch is not known to be large: NOT_APPLICABLE if it is small, because of `why`;
  /// NOT_MEASURED or UNDERPOWERED if that is not known. True where the finding was settled so.
  bool excuse(Finding& finding, const std::string& why) const;

 private:
  ColumnIndex loss_ = kNoColumn;
  ColumnIndex probe_loss_ = kNoColumn;
  ColumnIndex batch_size_ = kNoColumn;
  ColumnIndex product_ = kNoColumn;
  const RunContext* context_ = nullptr;
  NoiseColumns noise_columns_;
  int64_t last_step_ = -1;
  double last_probe_loss_ = 0;
  uint64_t compared_ = 0;
  uint64_t agreed_ = 0;
  uint64_t steps_compared_ = 0;  // before and after one step
  uint64_t steps_agreed_ = 0;
  NoiseScaleSeries noise_;
  RecentHalf batch_{1};
};

/// The loss by its best witness. Its level is the probe loss where there is one, else the loss of
/// the steps. That it rose says the change on the step's own batch or the level where they were
/// measured, and in between, for a full batch, the loss of the step: an oscillation of period two
/// that is looked at every tenth step may never show.
class LossWitness {
 public:
  void begin(const RunContext& context);
  /// `full_batch`: the losses of steps can be compared with each other.
  void observe(const Frame& frame, bool full_batch);

  /// Of the frame observed last; NaN: not measured at it. Infinite values and NaN in the trace are
  /// +infinity here.
  double level() const { return level_; }
  /// 1: the loss rose by more than rounding, 0: it did not, NaN: not known.
  double rose() const { return rose_; }

 private:
  ColumnIndex loss_ = kNoColumn;
  ColumnIndex probe_loss_ = kNoColumn;
  ColumnIndex loss_change_ = kNoColumn;
  bool has_probe_loss_ = false;
  double level_ = kUnknown;
  double last_level_ = kUnknown;
  double last_loss_ = kUnknown;
  double rose_ = kUnknown;
};

}  // namespace tycho::analyzer
