#pragma once

#include <cmath>

#include "laws/training_regime.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// What laws about passing the edge of stability follow: the ratio of sharpness to the optimizer's
/// threshold, the learning rate, the loss, and whether the batch is large.
class EdgeSeries {
 public:
  void begin(const RunContext& context) {
    sharpness_ = context.column("preconditioned_sharpness", v1::SCOPE_RUN);
    error_ = context.column("preconditioned_sharpness_error_bound", v1::SCOPE_RUN);
    threshold_ = context.column("stability_threshold", v1::SCOPE_RUN);
    learning_rate_ = context.column("learning_rate", v1::SCOPE_RUN);
    regime_.begin(context);
    loss_.begin(context);
  }

  void observe(const Frame& frame) {
    regime_.observe(frame);
    loss_.observe(frame, regime_.is_full());
    if (frame.optimizer() != nullptr) {
      adaptive_ = frame.optimizer()->optimizer() != "SGD";
      if (frame.optimizer()->group_size() > 0)
        last_learning_rate_ = frame.optimizer()->group(0).learning_rate();
    }
    const double rate = frame.column(learning_rate_)[0];
    if (std::isfinite(rate)) last_learning_rate_ = rate;
    if (!std::isnan(loss_.level())) last_level_ = loss_.level();
    threshold_value_ = frame.column(threshold_)[0];
    ratio_ = frame.column(sharpness_)[0] / threshold_value_;
    measured_ = threshold_value_ > 0 && std::isfinite(ratio_);
    const double bound = frame.column(error_)[0] / threshold_value_;
    ratio_error_ = bound >= 0 && std::isfinite(bound) ? bound : 0;
  }

  /// Was the sharpness measured at the frame observed last? Of it then:
  bool measured() const { return measured_; }
  double ratio() const { return ratio_; }
  double ratio_error() const { return ratio_error_; }  ///< bound
  double threshold() const { return threshold_value_; }

  double learning_rate() const { return last_learning_rate_; }  ///< NaN: not known yet
  double last_level() const { return last_level_; }  ///< of the loss, recorded last; NaN: none yet
  const LossWitness& loss() const { return loss_; }
  const BatchRegime& regime() const { return regime_; }
  /// Not SGD: the preconditioner moves with the gradients.
  bool adaptive() const { return adaptive_; }

 private:
  ColumnIndex sharpness_ = kNoColumn;
  ColumnIndex error_ = kNoColumn;
  ColumnIndex threshold_ = kNoColumn;
  ColumnIndex learning_rate_ = kNoColumn;
  BatchRegime regime_;
  LossWitness loss_;
  bool measured_ = false;
  double ratio_ = kUnknown;
  double ratio_error_ = 0;
  double threshold_value_ = kUnknown;
  double last_learning_rate_ = kUnknown;
  double last_level_ = kUnknown;
  bool adaptive_ = false;
};

}  // namespace tycho::analyzer
