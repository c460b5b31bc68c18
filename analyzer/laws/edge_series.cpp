#include "laws/edge_series.h"

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"

namespace tycho::analyzer {

void EdgeSharpness::begin(const RunContext& context) {
  context_ = &context;
  preconditioned_ = context.column("preconditioned_sharpness", v1::SCOPE_RUN);
  preconditioned_error_ = context.column("preconditioned_sharpness_error_bound", v1::SCOPE_RUN);
  recorded_threshold_ = context.column("stability_threshold", v1::SCOPE_RUN);
  plain_ = context.column("sharpness", v1::SCOPE_RUN);
  plain_error_ = context.column("sharpness_error_bound", v1::SCOPE_RUN);
  eigenvalue_ = context.column("hessian_eigenvalue", v1::SCOPE_INDEX);
  eigenvalue_error_ = context.column("hessian_eigenvalue_error_bound", v1::SCOPE_INDEX);
  learning_rate_ = context.column("learning_rate", v1::SCOPE_RUN);
  settings_version_ = 0;
}

void EdgeSharpness::take_settings(const v1::OptimizerSettings& settings) {
  why_not_equal_.clear();
  if (settings.optimizer() != "SGD" || settings.group_size() == 0) {
    why_not_equal_ = "it is that of the Hessian, not of what " + settings.optimizer() +
                     " makes of it: the preconditioned sharpness is needed";
    return;
  }
  const v1::ParameterGroup& first = settings.group(0);
  std::vector<bool> held(static_cast<size_t>(context_->model().parameter_size()), false);
  least_decay_ = Estimate::kInfinity;
  most_decay_ = -Estimate::kInfinity;
  for (const v1::ParameterGroup& group : settings.group()) {
    if (group.learning_rate() != first.learning_rate() || group.momentum() != first.momentum() ||
        group.dampening() != first.dampening() || group.nesterov() != first.nesterov())
      why_not_equal_ =
          "parameter groups move at different speeds: the preconditioned sharpness is "
          "needed";
    const double decay = group.decoupled_weight_decay() ? 0 : group.weight_decay();
    least_decay_ = std::min(least_decay_, decay);
    most_decay_ = std::max(most_decay_, decay);
    for (const uint32_t id : group.parameter()) {
      if (id < held.size()) held[id] = true;
    }
  }
  for (const v1::Parameter& parameter : context_->model().parameter()) {
    if (parameter.requires_grad() && !held[parameter.id()])
      why_not_equal_ =
          "the optimizer does not hold all parameters: the preconditioned sharpness is "
          "needed";
  }
  edge_ = edge_of(first);
  rate_ = first.learning_rate();
  scale_ = 1 - first.dampening();
}

void EdgeSharpness::observe(const Frame& frame) {
  if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
    settings_version_ = frame.optimizer_version();
    take_settings(*frame.optimizer());
  }
  measured_ = false;
  const double recorded_threshold = frame.column(recorded_threshold_)[0];
  const auto take = [&](const std::string& statistic, double value, double bound,
                        double threshold) {
    if (!std::isfinite(value / threshold) || !(threshold > 0)) return;
    measured_ = true;
    sharpness_ = value;
    error_ = bound >= 0 && std::isfinite(bound) ? bound : 0;
    threshold_ = threshold;
    if (statistic_ != statistic) statistic_ = statistic;
  };
  take("preconditioned_sharpness", frame.column(preconditioned_)[0],
       frame.column(preconditioned_error_)[0], recorded_threshold);
  if (measured_) return;
  const ColumnValues plain = frame.column(plain_);
  const ColumnValues list = frame.column(eigenvalue_);
  const bool is_plain = plain.present && std::isfinite(plain[0]);
  if (!is_plain && !(list.present && std::isfinite(list[0]))) return;
  plain_seen_ = true;
  if (!why_not_equal_.empty()) return;
  const double value = is_plain ? plain[0] : list[0];
  const double bound =
      is_plain ? frame.column(plain_error_)[0] : frame.column(eigenvalue_error_)[0];
  const double rate = frame.column(learning_rate_)[0];
  const double threshold =
      recorded_threshold > 0 ? recorded_threshold : edge_ / (std::isfinite(rate) ? rate : rate_);
  const double spread = 0.5 * (most_decay_ - least_decay_);
  take(is_plain ? "sharpness" : "hessian_eigenvalue",
       scale_ * (value + 0.5 * (most_decay_ + least_decay_)),
       scale_ * ((bound >= 0 && std::isfinite(bound) ? bound : 0) + spread), threshold);
}

void EdgeSharpness::explain(Finding& finding) const {
  if (plain_seen_) {
    set_verdict(finding, Verdict::kNotMeasured);
    finding.gate = "the sharpness was recorded, but " + why_not_equal_ +
                   " (SessionOptions::every(\"preconditioned_sharpness\", 50))";
    return;
  }
  const bool plain = context_->run().optimizer() == "SGD";
  set_not_measured(finding, *context_, "the sharpness was",
                   plain ? std::vector<std::string>{"sharpness", "preconditioned_sharpness",
                                                    "hessian_eigenvalue"}
                         : std::vector<std::string>{"preconditioned_sharpness"});
}

void EdgeSeries::begin(const RunContext& context) {
  sharpness_.begin(context);
  learning_rate_ = context.column("learning_rate", v1::SCOPE_RUN);
  regime_.begin(context);
  loss_.begin(context);
}

void EdgeSeries::observe(const Frame& frame) {
  regime_.observe(frame);
  loss_.observe(frame, regime_.is_full());
  sharpness_.observe(frame);
  if (frame.optimizer() != nullptr) {
    adaptive_ = frame.optimizer()->optimizer() != "SGD";
    if (frame.optimizer()->group_size() > 0)
      last_learning_rate_ = frame.optimizer()->group(0).learning_rate();
  }
  const double rate = frame.column(learning_rate_)[0];
  if (std::isfinite(rate)) last_learning_rate_ = rate;
  if (!std::isnan(loss_.level())) last_level_ = loss_.level();
  if (first_step_ >= 0 || !measured()) return;
  first_step_ = frame.step();
  first_ratio_ = ratio();
  first_ratio_error_ = ratio_error();
}

}  // namespace tycho::analyzer
