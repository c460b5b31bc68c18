#include "laws/central_flow_series.h"

#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/edge_series.h"
#include "laws/law_support.h"

namespace tycho::analyzer {
namespace {

constexpr double kSameSettings = 0.2;  // change of the threshold within a stretch
constexpr double kFewestAlone = 0.8;   // share of the band with one critical mode
constexpr double kFewestInBand = 0.5;  // share of the observations since the edge was reached

}  // namespace

void CentralFlowSeries::begin(const RunContext& context) {
  context_ = &context;
  variance_ = context.column("central_flow_variance", v1::SCOPE_RUN);
  predicted_ = context.column("central_flow_variance_predicted", v1::SCOPE_RUN);
  excess_ = context.column("central_flow_loss_excess", v1::SCOPE_RUN);
  sharpness_ = context.column("central_flow_sharpness", v1::SCOPE_RUN);
  second_ = context.column("central_flow_second_eigenvalue", v1::SCOPE_RUN);
  threshold_ = context.column("stability_threshold", v1::SCOPE_RUN);
  learning_rate_ = context.column("learning_rate", v1::SCOPE_RUN);
  probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
  regime_.begin(context);
}

std::string CentralFlowSeries::why_not(const v1::OptimizerSettings* settings) const {
  if (settings == nullptr || settings->group_size() == 0)
    return "the optimizer's settings were not recorded";
  if (settings->optimizer() != "SGD") {
    return "derived for a fixed preconditioner (SGD); that of " + settings->optimizer() +
           " moves with the gradients";
  }
  const v1::ParameterGroup& first = settings->group(0);
  for (const v1::ParameterGroup& group : settings->group()) {
    if (group.learning_rate() != first.learning_rate() || group.momentum() != first.momentum() ||
        group.dampening() != first.dampening() || group.nesterov() != first.nesterov()) {
      return "parameter groups move at different speeds, which the formula does not cover";
    }
  }
  return "";
}

void CentralFlowSeries::observe(const Frame& frame) {
  regime_.observe(frame);
  if (const ColumnValues loss = frame.column(probe_loss_); loss.present) last_loss_ = loss[0];
  if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
    settings_version_ = frame.optimizer_version();
    why_not_ = why_not(frame.optimizer());
  }
  // The threshold is that of the learning rate at which it was recorded.
  const v1::ParameterGroup* group =
      frame.optimizer() != nullptr && frame.optimizer()->group_size() > 0
          ? &frame.optimizer()->group(0)
          : nullptr;
  double rate = frame.column(learning_rate_)[0];
  if (!std::isfinite(rate) && group != nullptr) rate = group->learning_rate();
  const double threshold = frame.column(threshold_)[0];
  if (threshold > 0 && rate > 0) {
    known_threshold_ = threshold * rate;
  } else if (!std::isfinite(known_threshold_) && group != nullptr && why_not_.empty()) {
    known_threshold_ = EdgeSharpness::edge_of(*group) / (1 - group->dampening());
  }
  const double sharpness = frame.column(sharpness_)[0];
  const double variance = frame.column(variance_)[0];
  const double predicted = frame.column(predicted_)[0];
  if (!std::isfinite(sharpness) || !std::isfinite(variance) || !std::isfinite(predicted)) return;
  ++measured_;
  const double now = known_threshold_ / rate;
  last_ratio_ = sharpness / now;
  if (!std::isfinite(last_ratio_) || !why_not_.empty()) return;
  if (!(std::fabs(now / first_threshold_ - 1) <= kSameSettings)) {
    first_threshold_ = now;
    reached_ = false;
    share_.clear();
    edge_.clear();
    distance_.clear();
  }
  reached_ = reached_ || std::fabs(last_ratio_ - 1) <= kReached;
  if (!reached_) return;
  const bool in_band = std::fabs(last_ratio_ - 1) <= kBand;
  const bool alone = frame.column(second_)[0] < kSecond * now;
  share_.add({in_band ? 1.0 : 0.0, in_band && alone ? 1.0 : 0.0}, frame.step());
  if (in_band && alone) {
    const double excess = frame.column(excess_)[0];
    const double expected = 0.5 * sharpness * predicted;
    edge_.add({variance, predicted, excess, expected}, frame.step());
    distance_.add(
        {std::fabs(variance - predicted), predicted, std::fabs(excess - expected), expected},
        frame.step());
  }
}

bool CentralFlowSeries::ready(Finding* finding) const {
  set_verdict(*finding, Verdict::kNotApplicable);
  if (measured_ == 0) {
    if (settings_version_ > 0 && !why_not_.empty()) {
      finding->gate = why_not_;
    } else {
      set_not_measured(*finding, *context_, "the oscillation was", {"central_flow_variance"});
    }
    return false;
  }
  if (settings_version_ == 0) {
    set_no_settings(*finding);
    return false;
  }
  if (!why_not_.empty()) {
    finding->gate = why_not_;
    return false;
  }
  if (!std::isfinite(last_ratio_)) {
    set_not_measured(*finding, *context_, "the learning rate was", {"learning_rate"});
    return false;
  }
  if (regime_.excuse(*finding, "gradient noise also drives the oscillation")) return false;
  if (!reached_) {
    const bool near = last_ratio_ > 1 - kBand;
    set_verdict(*finding, near ? Verdict::kNotYet : Verdict::kNotApplicable);
    finding->gate = fmt::format("{}: the sharpness is {} of the threshold",
                                near ? "approaching the edge" : "not at the edge of stability",
                                format_number(last_ratio_));
    return false;
  }
  const BlockAverages& share = share_.blocks();
  if (share.observations() < 2 * BlockAverages::kMinBlocks) {
    set_verdict(*finding, Verdict::kNotYet);
    finding->gate = only_observations(share.observations()) + " since the edge was reached";
    return false;
  }
  const double in_band = share.mean({1, 0}).value;
  if (in_band < kFewestInBand) {
    finding->gate = fmt::format(
        "the sharpness is within {:.0f} % of the threshold at only {:.0f} % of the "
        "observations: it did not stay at the edge",
        100 * kBand, 100 * in_band);
    return false;
  }
  const double alone = share.mean({0, 1}).value / in_band;
  if (alone < kFewestAlone) {
    finding->gate = fmt::format(
        "more than one critical mode: the next eigenvalue is above {} of the threshold at {:.0f} % "
        "of the observations",
        kSecond, 100 * (1 - alone));
    return false;
  }
  const BlockAverages& blocks = edge_.blocks();
  if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
    set_verdict(*finding, Verdict::kNotYet);
    finding->gate = only_observations(blocks.observations()) + " at the edge";
    return false;
  }
  finding->window_begin = edge_.window_begin();
  finding->window_end = edge_.window_end();
  // A force that changes in time has no interval; one that points up all the time needs none (the
  // variance, over it, is never negative).
  const double least = blocks.range_of_ratio({1, 0, 0, 0}, {0, 1, 0, 0}).first;
  if (!(blocks.mean({0, 1, 0, 0}).low > 0 || least > 0)) {
    set_verdict(*finding, Verdict::kUnderpowered);
    finding->gate =
        "on average the flow does not sharpen here: nothing has to hold the sharpness down";
    return false;
  }
  finding->gate = fmt::format("{}; {} observations at the edge with one critical mode",
                              regime_.describe(), blocks.observations());
  return true;
}

}  // namespace tycho::analyzer
