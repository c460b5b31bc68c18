#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "src/engine/known_run.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// The step whose records are being read: of the run's columns it shows those that were recorded
/// at it, and it has the optimizer's settings that are in force. One object for the whole run,
/// begun anew at each step; what column() gives is valid until then. One thread at a time.
class CurrentFrame : public Frame {
 public:
  /// `run` outlives the frame.
  explicit CurrentFrame(const KnownRun& run) : run_(run) {}

  int64_t step() const override { return step_; }
  bool is_after_step() const override { return after_step_; }
  const v1::OptimizerSettings* optimizer() const override { return optimizer_.get(); }
  uint64_t optimizer_version() const override { return optimizer_version_; }
  /// O(1), no copy. Not present: the column was not recorded at this step, or there is none.
  ColumnValues column(ColumnIndex index) const override {
    ColumnValues values;
    const StoredColumn* stored = run_.at(index);
    if (stored == nullptr || stored->value_frame != number_) return values;
    values.value = stored->value.data();
    values.size = stored->value.size();
    values.present = true;
    if (stored->standard_error_frame == number_) {
      values.standard_error = stored->standard_error.data();
    }
    return values;
  }

  /// How many frames were begun so far: StoredColumn says by it which frame its values belong to.
  uint64_t number() const { return number_; }
  /// Begins the frame of this step, or the one behind it, which has no values yet.
  void begin(int64_t step, bool after_step = false) {
    step_ = step;
    after_step_ = after_step;
    ++number_;
  }
  void adopt(std::shared_ptr<const v1::OptimizerSettings> settings) {
    optimizer_ = std::move(settings);
    ++optimizer_version_;
  }

 private:
  const KnownRun& run_;
  int64_t step_ = -1;
  bool after_step_ = false;
  uint64_t number_ = 0;
  std::shared_ptr<const v1::OptimizerSettings> optimizer_;
  uint64_t optimizer_version_ = 0;
};

}  // namespace tycho::analyzer
