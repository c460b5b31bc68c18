// For a full-batch step without momentum, u = -eta P^-1 g, the critical sharpness of a quadratic is
// a Rayleigh quotient,
//   2/(s_c eta) = g'P^-1 H P^-1 g / g'P^-1 g,
// and so never above the largest eigenvalue of P^-1/2 H P^-1/2 that Lanczos finds. How far below it
// is says how much of the gradient lies along the sharpest direction: where the two agree, the
// cheap number follows the edge of stability.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/edge_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/paired_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.1;  // beyond a quadratic; and of the step between the two
constexpr double kTight = 0.5;      // of the bound

const LawDescription& law() {
  static const LawDescription description = {
      "critical_sharpness_bound",
      "Critical sharpness below the sharpness",
      Line::kEmpiricalLaws,
      "2/(s_c eta) <= lambda_max(P^-1/2 H P^-1/2), s_c the multiple of the update at which the "
      "loss "
      "is back at its start; measured: left over right, at most 1",
      "Full batch; SGD, RMSprop or Adagrad without momentum and weight decay; the loss is "
      "quadratic "
      "along the update out to the critical step",
      "Near 1, the critical sharpness follows the edge of stability, using forward passes only. "
      "Far below 1, the updates avoid the sharpest direction, and it must not be read as "
      "head-room",
      "Critical sharpness: arXiv:2601.16979; Rayleigh quotient exact for a quadratic",
      {"critical_sharpness", "preconditioned_sharpness", "preconditioned_sharpness_error_bound",
       "stability_threshold", "loss", "probe_loss", "batch_size", "grad_noise_trace",
       "grad_signal_sq"},
      {"With momentum, or a step from another batch, the update is not along -P^-1 g and nothing "
       "bounds the number."}};
  return description;
}

class CriticalSharpnessBound : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    critical_ = context.column("critical_sharpness", v1::SCOPE_RUN);
    context_ = &context;
    sharpness_.begin(context);
    regime_.begin(context);
  }

  void observe(const Frame& frame) override {
    regime_.observe(frame);
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      why_not_ = why_not(*frame.optimizer());
    }
    const double critical = frame.column(critical_)[0];
    sharpness_.observe(frame);
    const bool measured = sharpness_.measured();
    critical_measured_ = critical_measured_ || std::isfinite(critical);
    series_.add(critical, measured ? sharpness_.sharpness() + sharpness_.error() : kUnknown,
                frame.step());
    to_edge_.add(critical, measured ? sharpness_.threshold() : kUnknown, frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "of the sharpness";
    finding.evidence_statistic = "critical_sharpness";
    set_verdict(finding, Verdict::kNotApplicable);
    if (series_.observations() == 0) {
      if (critical_measured_) {
        sharpness_.explain(finding);
      } else {
        set_not_measured(finding, *context_, "the critical sharpness was", {"critical_sharpness"});
      }
      return {finding};
    }
    if (settings_version_ == 0 || !why_not_.empty()) {
      finding.gate =
          settings_version_ == 0 ? "the optimizer's settings were not recorded" : why_not_;
      return {finding};
    }
    if (!regime_.is_full()) {
      finding.gate =
          "not seen to be full batch: the update of a batch is not the gradient of the "
          "probe loss";
      return {finding};
    }
    if (series_.observations() < 2 * BlockAverages::kMinBlocks) {
      set_verdict(finding, Verdict::kNotYet);
      finding.gate = only_observations(series_.observations());
      return {finding};
    }
    judge_ratio(&finding);
    return {finding};
  }

 private:
  static std::string why_not(const v1::OptimizerSettings& settings) {
    const std::string& name = settings.optimizer();
    if (name != "SGD" && name != "RMSprop" && name != "Adagrad")
      return "the update of " + name + " is not along its preconditioned gradient";
    for (const v1::ParameterGroup& group : settings.group()) {
      if (group.momentum() != 0) return "with momentum the update is not along the gradient";
      if (group.weight_decay() != 0) return "weight decay moves the weights too";
    }
    return "";
  }

  void judge_ratio(Finding* finding) const {
    finding->window_begin = series_.pairs().window_begin();
    finding->window_end = series_.pairs().window_end();
    finding->evidence_level = series_.mean_second();
    finding->predicted = 1;
    finding->relation = Relation::kAtMost;
    const Estimate ratio = series_.ratio();
    set_measured(*finding, ratio);
    if (!(series_.mean_second() > 0)) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate = "no positive curvature was found by Lanczos";
      return;
    }
    set_verdict(*finding, judge_band(ratio, -Estimate::kInfinity, 1 + kTolerance));
    finding->p_value = band_p_value(ratio, -Estimate::kInfinity, 1 + kTolerance);
    // Below the bound a drift of both does no harm.
    const double most = series_.pairs().blocks().range_of_ratio({1, 0}, {0, 1}).second;
    if (finding->verdict == Verdict::kUnderpowered && (ratio.high <= 1 || most <= 1 + kTolerance))
      set_verdict(*finding, Verdict::kHolds);
    finding->gate = "at most 1 is predicted; " + regime_.describe();
    const std::string of = ratio.bounded() ? format_interval(ratio.value, ratio.low, ratio.high)
                                           : format_number(ratio.value);
    if (to_edge_.observations() >= 2 * BlockAverages::kMinBlocks) {
      const Estimate edge = to_edge_.ratio();
      finding->gate += fmt::format("; {} of the threshold of stability",
                                   format_interval(edge.value, edge.low, edge.high));
    }
    if (finding->verdict == Verdict::kHolds) {
      finding->advice =
          ratio.value > kTight
              ? fmt::format(
                    "The critical sharpness is {} of the sharpness: it follows the edge of "
                    "stability, for the cost of forward passes.",
                    of)
              : fmt::format(
                    "The critical sharpness is {} of the sharpness: the updates avoid the "
                    "sharpest direction, and steps as long as it allows would be unstable.",
                    of);
    } else if (finding->verdict == Verdict::kViolated) {
      finding->importance = 0.5;
      finding->advice = fmt::format(
          "The critical sharpness is {} of what Lanczos finds: the loss is steeper than a "
          "quadratic out to the critical step, or the step is not along the gradient of the "
          "probe loss (dropout, another loss, changed gradients).",
          of);
    }
  }

  ColumnIndex critical_ = kNoColumn;
  const RunContext* context_ = nullptr;
  EdgeSharpness sharpness_;
  BatchRegime regime_;
  bool critical_measured_ = false;
  uint64_t settings_version_ = 0;
  std::string why_not_;
  PairedSeries series_;   // critical sharpness, sharpness with its error bound
  PairedSeries to_edge_;  // critical sharpness, threshold
};

}  // namespace

std::unique_ptr<Law> make_critical_sharpness_bound() {
  return std::make_unique<CriticalSharpnessBound>();
}

}  // namespace tycho::analyzer
