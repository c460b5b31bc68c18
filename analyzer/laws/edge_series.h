#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "laws/training_regime.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// The sharpness that an optimizer feels and its threshold of stability, from whatever recorded it.
///
/// `preconditioned_sharpness` where there is one. For SGD whose parameter groups all move alike and
/// hold all parameters the preconditioner is a number, and lambda_max(H + D) follows from the
/// Hessian's own largest eigenvalue: from `sharpness`, else from the first `hessian_eigenvalue`,
/// plus the coupled weight decay, over 1 - dampening; where groups decay differently, between the
/// two extremes, which is part of the error. The threshold is then (2 + 2 beta)/eta, Nesterov (2 +
/// 2 beta)/((1 + 2 beta) eta), unless it was recorded.
class EdgeSharpness {
 public:
  void begin(const RunContext& context);
  void observe(const Frame& frame);

  /// Was the sharpness measured at the frame observed last? Of it then:
  bool measured() const { return measured_; }
  double sharpness() const { return sharpness_; }
  double error() const { return error_; }          ///< bound; 0 where none is known
  double threshold() const { return threshold_; }  ///< above 0

  /// The statistic it was taken from last, at scope run or index; "preconditioned_sharpness" before
  /// any was recorded.
  const std::string& statistic() const { return statistic_; }
  /// Threshold times learning rate of SGD, of the sharpness times 1 - dampening.
  static double edge_of(const v1::ParameterGroup& group) {
    const double b = group.momentum();
    return group.nesterov() ? (2 + 2 * b) / (1 + 2 * b) : 2 + 2 * b;
  }
  /// Of the law's finding, where nothing was measured so far: what, why, and how to have it.
  void explain(Finding& finding) const;

 private:
  void take_settings(const v1::OptimizerSettings& settings);

  const RunContext* context_ = nullptr;
  ColumnIndex preconditioned_ = kNoColumn;
  ColumnIndex preconditioned_error_ = kNoColumn;
  ColumnIndex recorded_threshold_ = kNoColumn;
  ColumnIndex plain_ = kNoColumn;
  ColumnIndex plain_error_ = kNoColumn;
  ColumnIndex eigenvalue_ = kNoColumn;
  ColumnIndex eigenvalue_error_ = kNoColumn;
  ColumnIndex learning_rate_ = kNoColumn;
  uint64_t settings_version_ = 0;
  std::string why_not_equal_ = "the optimizer's settings were not recorded";
  double edge_ = 0;   // threshold times learning rate
  double rate_ = 0;   // of the settings
  double scale_ = 1;  // 1 - dampening
  double least_decay_ = 0;
  double most_decay_ = 0;
  bool plain_seen_ = false;
  bool measured_ = false;
  double sharpness_ = kUnknown;
  double error_ = 0;
  double threshold_ = kUnknown;
  std::string statistic_ = "preconditioned_sharpness";
};

/// What laws about passing the edge of stability follow: the ratio of sharpness to the optimizer's
/// threshold, the learning rate, the loss, and whether the batch is large.
class EdgeSeries {
 public:
  /// Around 1, of the first edge ratio: beyond it a run starts above, or below, the edge.
  static constexpr double kStartMargin = 0.1;

  void begin(const RunContext& context);
  void observe(const Frame& frame);

  /// Was the sharpness measured at the frame observed last? Of it then:
  bool measured() const { return sharpness_.measured(); }
  double ratio() const { return sharpness_.sharpness() / sharpness_.threshold(); }
  double ratio_error() const { return sharpness_.error() / sharpness_.threshold(); }  ///< bound
  double threshold() const { return sharpness_.threshold(); }
  const EdgeSharpness& sharpness() const { return sharpness_; }

  double learning_rate() const { return last_learning_rate_; }  ///< NaN: not known yet
  double last_level() const { return last_level_; }  ///< of the loss, recorded last; NaN: none yet
  const LossWitness& loss() const { return loss_; }
  const BatchRegime& regime() const { return regime_; }
  /// Not SGD: the preconditioner moves with the gradients.
  bool adaptive() const { return adaptive_; }
  /// The edge ratio that was measured first; NaN: none yet. Its error's bound, and its step.
  double first_ratio() const { return first_ratio_; }
  double first_ratio_error() const { return first_ratio_error_; }
  int64_t first_step() const { return first_step_; }

 private:
  EdgeSharpness sharpness_;
  ColumnIndex learning_rate_ = kNoColumn;
  BatchRegime regime_;
  LossWitness loss_;
  double last_learning_rate_ = kUnknown;
  double last_level_ = kUnknown;
  bool adaptive_ = false;
  double first_ratio_ = kUnknown;
  double first_ratio_error_ = 0;
  int64_t first_step_ = -1;
};

}  // namespace tycho::analyzer
