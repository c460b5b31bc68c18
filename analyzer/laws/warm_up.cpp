// Thresholds of stability go as 1/eta, so that the edge ratio at another learning rate is known
// from the one measured: s(eta') = s(eta) eta'/eta. A run can start at its target learning rate iff
// s_0(eta_target) < 1; a warm-up is needed otherwise, and long enough iff s stays below 1 through
// the ramp, because training at the lower rate lowers the sharpness (Kalra and Barkeshli 2024).
//
// Tested is what that rests on: over the ramp and the measurements just behind it (without a ramp,
// the first ones) the loss jumps iff s passes 1.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/changed_gradients.h"
#include "laws/edge_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"

namespace tycho::analyzer {
namespace {

constexpr double kIsRamp = 0.9;    // first over largest learning rate, below: a warm-up
constexpr double kRaised = 1.001;  // a learning rate beyond the largest so far
constexpr double kSettled = 0.1;   // share of the run without a raise, for the ramp to be over
constexpr uint64_t kBehind = 5;    // measurements that still belong to the ramp
constexpr uint64_t kEnough = 16;   // measurements for a violation
constexpr double kStepsPerMeasurement = 5;  // at most, or a passage of the edge may be missed
constexpr double kMargin = 0.1;             // of s around 1
constexpr double kJump = 1.2;               // loss over the smallest before it
constexpr double kNoJump = 1.05;
constexpr double kLateStart = 0.1;  // share of the ramp before the first measurement, at most

const LawDescription& law() {
  static const LawDescription description = {
      "warm_up",
      "Warm-up of the learning rate",
      Line::kHyperparameters,
      "needed iff s_0(eta_target) = s_0 eta_target/eta_0 > 1; long enough iff s < 1 through the "
      "ramp; the loss jumps iff s passes 1",
      "Full batch, or a batch well above the noise scale; the sharpness was measured from the "
      "first "
      "steps on; a positive loss",
      "Not needed: start at the full learning rate. Needed and s far below 1 throughout: a shorter "
      "one would do. s above 1 in the ramp: make it longer",
      "Kalra and Barkeshli 2024, arXiv:2406.09405; Gilmer et al. 2022, arXiv:2110.04369",
      {"preconditioned_sharpness", "preconditioned_sharpness_error_bound", "stability_threshold",
       "learning_rate", "loss", "probe_loss"},
      {"This considers stability only: a warm-up also limits the harm of large initial "
       "rotations of scale-invariant weights and of an unsettled second moment.",
       "Small batches become unstable at a lower sharpness than the edge."}};
  return description;
}

/// What was seen up to a moment.
struct Passage {
  double largest = 0;        // s
  double largest_error = 0;  // its bound
  int64_t largest_step = -1;
  double jump = 1;  // largest loss over the smallest before it
  uint64_t measurements = 0;
  uint64_t above = 0;  // measurements with s above 1 + margin
  int64_t end = -1;
};

class WarmUp : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    edge_.begin(context);
    changed_.begin(context);
  }

  void observe(const Frame& frame) override {
    edge_.observe(frame);
    changed_.observe(frame);
    const double rate = edge_.learning_rate();
    if (!started_) first_step_ = frame.step();
    started_ = true;
    last_step_ = frame.step();
    if (std::isfinite(rate) && !(first_rate_ > 0)) {
      first_rate_ = rate;
      raise_step_ = frame.step();
    }
    if (rate > kRaised * largest_rate_) {
      raise_step_ = frame.step();
      largest_rate_ = rate;
      ramp_ = so_far_;
      behind_ = 0;
    }
    const double level = edge_.loss().level();
    if (!std::isnan(level)) {
      if (smallest_level_ > 0 && level > 0)
        so_far_.jump = std::max(so_far_.jump, level / smallest_level_);
      smallest_level_ = std::fmin(smallest_level_, level);
    }
    so_far_.end = frame.step();
    if (edge_.measured()) take_ratio(frame.step());
    if (behind_ < kBehind) ramp_ = so_far_;
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.evidence_statistic = edge_.sharpness().statistic();
    if (so_far_.measurements == 0) {
      edge_.sharpness().explain(finding);
    } else if (!(first_rate_ > 0) || ramp_.measurements == 0) {
      set_not_measured(finding, *context_, "the learning rate was", {"learning_rate"});
    } else {
      judge_ramp(&finding);
    }
    return {finding};
  }

 private:
  void take_ratio(int64_t step) {
    if (so_far_.measurements == 0) {
      first_measured_ = step;
      first_ratio_ = edge_.ratio();
      first_error_ = edge_.ratio_error();
      first_measured_rate_ = edge_.learning_rate();
    }
    ++behind_;
    ++so_far_.measurements;
    so_far_.above += edge_.ratio() - edge_.ratio_error() > 1 + kMargin;
    if (so_far_.largest_step >= 0 && !(edge_.ratio() > so_far_.largest)) return;
    so_far_.largest = edge_.ratio();
    so_far_.largest_error = edge_.ratio_error();
    so_far_.largest_step = step;
  }

  void judge_ramp(Finding* finding) const {
    const bool ramp = first_rate_ < kIsRamp * largest_rate_;
    finding->unit = "of the edge";
    finding->predicted = 1;
    finding->measured = ramp_.largest;
    finding->ci_low = ramp_.largest - ramp_.largest_error;
    finding->ci_high = ramp_.largest + ramp_.largest_error;
    finding->confidence = 1;
    finding->window_begin = first_step_;
    finding->window_end = ramp_.end;
    const double seen = steps_between(first_step_, last_step_) + 1;
    // A loss that is no longer finite has said what there is to say.
    const bool diverged = std::isinf(edge_.last_level());
    if (!diverged &&
        (steps_between(raise_step_, last_step_) < kSettled * seen || behind_ < kBehind)) {
      finding->gate = ramp ? "the learning rate still rises" : "too few steps";
      return;
    }
    const double length = steps_between(first_step_, raise_step_);
    if (steps_between(first_step_, first_measured_) > std::max(1.0, kLateStart * length)) {
      set_not_applicable(
          *finding, fmt::format("the sharpness was first measured at step {}", first_measured_));
      return;
    }
    if (edge_.regime().excuse(*finding,
                              "with gradient noise training becomes unstable at a lower sharpness"))
      return;
    const bool passed = finding->ci_low > 1 + kMargin;
    const bool stayed = finding->ci_high < 1 - kMargin;
    const bool jumped = ramp_.jump > kJump;
    const bool calm = ramp_.jump < kNoJump;
    set_verdict(*finding, Verdict::kUnderpowered);
    if ((passed && jumped) || (stayed && calm)) {
      set_verdict(*finding, Verdict::kHolds);
    } else if (stayed && jumped && measured_closely()) {
      set_verdict(*finding, Verdict::kViolated);
    } else if (passed && calm && ramp_.above >= kEnough) {
      set_verdict(*finding, Verdict::kViolated);
    }
    finding->gate = fmt::format(
        "{}; largest edge ratio {} at step {}, loss at most {} times the smallest before",
        edge_.regime().describe(), format_number(ramp_.largest), ramp_.largest_step,
        format_number(ramp_.jump));
    if (finding->verdict == Verdict::kViolated) {
      if (const std::string changed = changed_.evidence(); passed && !changed.empty())
        return set_not_applicable(*finding, changed + ": the edge is not where the settings say");
      finding->advice =
          passed ? "The sharpness was above the edge, but the loss did not jump: the steps are "
                   "not what the settings say, or the probe loss is sharper than the training "
                   "loss."
                 : "The loss jumped although the sharpness was below the edge: the step size is "
                   "not the cause; look at the data.";
      return;
    }
    advise(ramp, length, finding);
  }

  bool measured_closely() const {
    return ramp_.measurements >= kEnough &&
           steps_between(first_step_, ramp_.end) <=
               kStepsPerMeasurement * static_cast<double>(ramp_.measurements);
  }

  void advise(bool ramp, double length, Finding* finding) const {
    const double scale = largest_rate_ / first_measured_rate_;
    const double start = first_ratio_ * scale;
    const double start_low = (first_ratio_ - first_error_) * scale;
    const double start_high = (first_ratio_ + first_error_) * scale;
    const std::string at_target =
        fmt::format("At the full learning rate {} the run would have started at {} of the edge",
                    format_number(largest_rate_), format_number(start));
    const bool needed = start_low > 1 + EdgeSeries::kStartMargin;
    const bool not_needed = start_high < 1 - EdgeSeries::kStartMargin;
    if (!ramp) {
      if (needed) {
        finding->importance = std::max(finding->importance, 0.6);
        finding->advice = fmt::format(
            "The run started at {} times the edge of stability: a warm-up from a learning rate "
            "below "
            "{} avoids the instability.",
            format_number(start), format_number(largest_rate_ / start));
      } else if (not_needed) {
        finding->advice = fmt::format(
            "The run started at {} of the edge of stability: its start needs no "
            "warm-up.",
            format_number(start));
      }
      return;
    }
    if (finding->ci_low > 1 + kMargin && !not_needed) {
      finding->importance = std::max(finding->importance, 0.6);
      finding->advice = fmt::format(
          "The warm-up of {:.0f} steps was too short: at step {} the sharpness was {} times the "
          "edge. Make it longer, or lower the learning rate.",
          length, ramp_.largest_step, format_number(ramp_.largest));
    } else if (finding->ci_low > 1 + kMargin) {
      finding->importance = std::max(finding->importance, 0.5);
      finding->advice = fmt::format(
          "{}: the warm-up of {:.0f} steps was not needed at first, but training sharpened, and at "
          "step {} the sharpness was {} times the edge. A longer warm-up will not change that; a "
          "lower learning rate will.",
          at_target, length, ramp_.largest_step, format_number(ramp_.largest));
    } else if (not_needed) {
      finding->importance = std::max(finding->importance, 0.5);
      finding->advice = fmt::format(
          "{}: for stability, the warm-up of {:.0f} steps was not needed.", at_target, length);
    } else if (needed) {
      finding->importance = std::max(finding->importance, 0.5);
      finding->advice = fmt::format(
          "{}: the warm-up of {:.0f} steps was needed and was long enough{}.", at_target, length,
          finding->ci_high < 0.5
              ? fmt::format("; the sharpness never exceeded {} of the edge, so a shorter one "
                            "would do",
                            format_number(ramp_.largest))
              : "");
    }
  }

  const RunContext* context_ = nullptr;
  EdgeSeries edge_;
  ChangedGradients changed_;
  bool started_ = false;
  int64_t first_step_ = -1;
  int64_t last_step_ = -1;
  double first_rate_ = kUnknown;
  double largest_rate_ = 0;
  int64_t raise_step_ = -1;  // last step at which the learning rate passed its largest so far
  int64_t first_measured_ = -1;
  double first_ratio_ = kUnknown;
  double first_error_ = 0;
  double first_measured_rate_ = kUnknown;
  double smallest_level_ = kUnknown;
  uint64_t behind_ = 0;  // measurements since the last raise
  Passage so_far_;
  Passage ramp_;  // so far, when the ramp and what belongs to it ended
};

}  // namespace

std::unique_ptr<Law> make_warm_up() { return std::make_unique<WarmUp>(); }

}  // namespace tycho::analyzer
