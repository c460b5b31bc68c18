// Along the update u the loss of a quadratic is L + s g.u + (s^2/2) u'Hu: it is back at its start
// at s_c = -2 g.u/u'Hu. The critical sharpness 2/(s_c eta), found from values of the loss alone, is
// then the curvature along the update that a Hessian-vector product gives, -u'Hu/(eta g.u), which
// loss_change records as -2 (second order)/(first order)/eta. They differ where the loss is not
// quadratic out to the critical step.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "laws/training_regime.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.2;   // the search for the critical step may stop 20 % off it
constexpr double kSameLoss = 1e-3;   // of a loss change and the difference of probe losses
constexpr uint64_t kFewestSame = 4;  // comparisons
constexpr double kShareSame = 0.9;
constexpr double kFar = 10;  // updates out to which a quadratic may be expected

const LawDescription& law() {
  static const LawDescription description = {
      "critical_sharpness_agreement",
      "Critical sharpness and curvature along the update",
      Line::kEmpiricalLaws,
      "2/(s_c eta) = -u'Hu/(eta g.u), s_c the multiple of the update u at which the loss is back "
      "at its start; measured: left over right",
      "Both on the probe batch; the loss is quadratic along the update out to the critical step",
      "If it holds, the critical sharpness is a curvature for the cost of forward passes, and "
      "may be measured often. If not, it is still the longest stable step along the update, but "
      "not a curvature",
      "Critical sharpness: arXiv:2601.16979; exact for a quadratic",
      {"critical_sharpness", "loss_change", "loss_change_first_order", "loss_change_second_order",
       "learning_rate", "loss", "probe_loss", "batch_size", "grad_noise_trace", "grad_signal_sq"},
      {"Far below the edge the critical step is many updates away, where few losses are "
       "quadratic: beyond 10 they may agree, but a disagreement is not judged."}};
  return description;
}

class CriticalSharpnessAgreement : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    critical_ = context.column("critical_sharpness", v1::SCOPE_RUN);
    change_ = context.column("loss_change", v1::SCOPE_RUN);
    first_ = context.column("loss_change_first_order", v1::SCOPE_RUN);
    second_ = context.column("loss_change_second_order", v1::SCOPE_RUN);
    rate_ = context.column("learning_rate", v1::SCOPE_RUN);
    probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
    regime_.begin(context);
  }

  void observe(const Frame& frame) override {
    regime_.observe(frame);
    const double change = frame.column(change_)[0];
    const double probe_loss = frame.column(probe_loss_)[0];
    // Is the batch of the loss change the probe's? Then it is a difference of two probe losses.
    if (steps_between(last_step_, frame.step()) == 1 &&
        std::isfinite(probe_loss - last_probe_loss_ - change)) {
      ++compared_;
      same_ += std::fabs(probe_loss - last_probe_loss_ - change) <=
               kSameLoss * std::fabs(change) + kRounding * std::fabs(probe_loss);
    }
    last_step_ = frame.step();
    last_probe_loss_ = probe_loss;
    const double critical = frame.column(critical_)[0];
    critical_measured_ = critical_measured_ || std::isfinite(critical);
    const double first = frame.column(first_)[0];
    const double second = frame.column(second_)[0];
    const double rate = frame.column(rate_)[0];
    if (!std::isfinite(critical) || !(first < 0) || !(rate > 0)) return;
    const double curvature = -2 * second / (first * rate);
    if (!std::isfinite(curvature)) return;
    series_.add({critical, curvature, std::fabs(critical - curvature), critical * rate / 2},
                frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "of the curvature along the update";
    finding.evidence_statistic = "critical_sharpness";
    const BlockAverages& blocks = series_.blocks();
    if (blocks.observations() == 0) {
      if (!critical_measured_) {
        set_not_measured(finding, *context_, "the critical sharpness was", {"critical_sharpness"});
      } else if (!context_->recorded("loss_change_second_order")) {
        set_not_measured(finding, *context_, "the curvature along the update was",
                         {"loss_change_second_order"});
      } else {
        set_verdict(finding, Verdict::kNotMeasured);
        finding.gate =
            "the curvature along the update was not measured at the same steps as the critical "
            "sharpness, on updates that go downhill: give both the same interval, "
            "every(\"critical_sharpness\", 20).every(\"loss_change\", 20)";
      }
      return {finding};
    }
    if (!same_batch()) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate =
          "the loss changes are not known to be those of the probe batch, on which the critical "
          "sharpness is measured";
      return {finding};
    }
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = only_observations(blocks.observations());
      return {finding};
    }
    finding.window_begin = series_.window_begin();
    finding.window_end = series_.window_end();
    const Estimate ratio = blocks.ratio({1, 0, 0, 0}, {0, 1, 0, 0});
    judge_ratio(finding, ratio, kTolerance, blocks.ratio({0, 0, 1, 0}, {0, 1, 0, 0}).value);
    const double steps = 1 / blocks.mean({0, 0, 0, 1}).value;
    finding.gate =
        fmt::format("the loss is back at its start after about {} updates", format_number(steps));
    if (finding.verdict == Verdict::kHolds) {
      finding.advice =
          "The critical sharpness equals the curvature along the updates, so it can replace "
          "Hessian-vector products and be measured often.";
    } else if (steps > kFar) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.p_value = kUnknown;
      finding.gate +=
          ", where few losses are quadratic: it is a limit of the step, not a "
          "curvature";
    } else if (finding.verdict == Verdict::kViolated) {
      // Says something about the loss, and nothing is wrong with it.
      finding.importance = 0.4;
      finding.advice = fmt::format(
          "Out to {} updates the loss is {} than a quadratic: read the critical sharpness as a "
          "limit of the step along the update, not as a curvature.",
          format_number(steps), ratio.value > 1 ? "steeper" : "flatter");
    }
    return {finding};
  }

 private:
  static constexpr double kRounding = 1e-6;

  bool same_batch() const {
    return regime_.is_full() ||
           (compared_ >= kFewestSame &&
            static_cast<double>(same_) >= kShareSame * static_cast<double>(compared_));
  }

  const RunContext* context_ = nullptr;
  ColumnIndex critical_ = kNoColumn;
  ColumnIndex change_ = kNoColumn;
  ColumnIndex first_ = kNoColumn;
  ColumnIndex second_ = kNoColumn;
  ColumnIndex rate_ = kNoColumn;
  ColumnIndex probe_loss_ = kNoColumn;
  BatchRegime regime_;
  bool critical_measured_ = false;
  int64_t last_step_ = -2;
  double last_probe_loss_ = kUnknown;
  uint64_t compared_ = 0;
  uint64_t same_ = 0;
  RecentHalf series_{4};  // critical, curvature, their distance, 1/s_c
};

}  // namespace

std::unique_ptr<Law> make_critical_sharpness_agreement() {
  return std::make_unique<CriticalSharpnessAgreement>();
}

}  // namespace tycho::analyzer
