// SGD with gradient noise hovers above the path of its gradient flow. In a quadratic basin with
// curvature h, noise variance s^2 of the step's gradient and step eta, each direction has at rest
//   h/2 Var = (eta/4) s^2 / (1 - eta h/2),
// whatever its h: together eta/4 tr Sigma_mb, Sigma_mb being the covariance of the gradient of a
// batch, with momentum over 1 - mu. At the same gradient-flow time S = sum of eta, a run whose rate
// was lowered from eta to eta' therefore lies (eta - eta')/4 tr Sigma_mb below (Qiu et al. 2025,
// who measured 0.21 and 0.26 in place of the quarter).
//
// The loss that the constant rate would have had at the same S is the power law fitted to the
// constant phase (src/schedule/loss_law.h). The law is judged where the rate was lowered; before,
// it says what lowering it should gain.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/changed_gradients.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/parameter_settings.h"
#include "src/schedule/constant_phase.h"
#include "src/schedule/fit_loss_law.h"
#include "src/schedule/forecast_error.h"
#include "src/schedule/schedule_record.h"
#include "src/statistics/noise_scale_series.h"
#include "src/statistics/recent_half.h"
#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

constexpr double kQuarter = 0.25;
constexpr double kLeastMeasured = 0.21;  // in place of the quarter, by Qiu et al.
constexpr double kMostMeasured = 0.26;
constexpr double kTolerance = 1;      // a factor of 2
constexpr double kLowered = 0.3;      // of the peak: the rate was lowered
constexpr double kLongEnough = 0.1;   // of the steps, at a lowered rate
constexpr size_t kFewestLowered = 3;  // bins
constexpr size_t kFewestConstant = 24;
constexpr double kTransient = 0.1;  // of the constant phase, left out of its fit
constexpr double kConstant = 0.98;  // of the peak
constexpr double kWander = 0.2;     // of the gain
constexpr double kMuch = 0.5;       // of the loss: beyond the quadratic basin
constexpr double kOnward = 0.25;    // of the steps: a decay over the last fifth of the run
constexpr double kWorthIt = 0.02;   // of the loss

const LawDescription& law() {
  static const LawDescription description = {
      "decay_gain",
      "Gain of lowering the learning rate",
      Line::kHyperparameters,
      "L(S, eta) - L(S, eta') = (eta - eta')/4 tr(Sigma)/B / (1 - momentum) at the same sum S of "
      "learning rates, within a factor of 2",
      "SGD, one learning rate for all parameters; the noise of all of them is measured; a constant "
      "rate whose loss follows a power law, then a tenth of the steps at 0.3 of it or less",
      "If the gain exceeds what as many steps at the same rate would gain, begin the decay; if "
      "both are too small, stop",
      "Qiu et al. 2025, arXiv:2507.02119, eq. 16",
      {"loss", "learning_rate", "batch_size", "grad_noise_trace"},
      {"Adam and similar optimizers need the preconditioned noise, which is not recorded.",
       "Directions that have no time to relax during the decay keep their noise: a short decay "
       "gains less.",
       "The noise is measured before the decay; if it falls with the loss, the gain differs in "
       "second order."}};
  return description;
}

class DecayGain : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    record_.begin(context);
    noise_ = NoiseColumns::of(context, v1::SCOPE_RUN);
    changed_.begin(context);
    settings_version_ = 0;
  }

  void observe(const Frame& frame) override {
    record_.observe(frame);
    changed_.observe(frame);
    if (frame.optimizer() == nullptr) return;
    if (frame.optimizer_version() != settings_version_) take_settings(frame);
    if (!reason_.empty() || !(rate_ >= kConstant * peak_)) return;
    const double trace = frame.column(noise_.trace)[0];
    const double batch = frame.column(noise_.batch_size)[0];
    if (!std::isfinite(trace) || !(batch > 0)) return;
    floor_.add({effective_ * trace / batch, 0, 0, 0}, frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "loss";
    finding.evidence_statistic = "loss";
    judge_run(&finding);
    return {finding};
  }

 private:
  void take_settings(const Frame& frame) {
    settings_version_ = frame.optimizer_version();
    const std::string& name = frame.optimizer()->optimizer();
    if (name != "SGD") {
      reason_ = fmt::format(
          "derived for SGD; with {} the noise is weighted by a preconditioner that is not known",
          name);
      return;
    }
    const ParameterSettings* first = nullptr;
    const auto settings = settings_by_parameter(
        frame.optimizer(), static_cast<size_t>(context_->model().parameter_size()));
    for (const ParameterSettings& each : settings) {
      if (!each.known) continue;
      if (first == nullptr) first = &each;
      if (each.learning_rate != first->learning_rate || each.momentum != first->momentum ||
          each.dampening != first->dampening) {
        reason_ = "the parameters do not all have the same learning rate and momentum";
        return;
      }
    }
    if (first == nullptr || !(first->momentum < 1)) return;
    rate_ = first->learning_rate;
    effective_ = rate_ * (1 - first->dampening) / (1 - first->momentum);
    if (rate_ > peak_) {
      if (kConstant * rate_ > peak_) floor_.clear();
      peak_ = rate_;
    }
  }

  void judge_run(Finding* finding) const {
    if (!reason_.empty()) return set_not_applicable(*finding, reason_);
    if (record_.losses() + record_.not_positive() == 0)
      return set_not_measured(*finding, *context_, "the loss was", {"loss"});
    if (settings_version_ == 0) return set_no_settings(*finding);
    if (floor_.blocks().observations() == 0) {
      return set_not_measured(*finding, *context_, "the noise of all gradients was",
                              {"grad_noise_trace"});
    }
    if (const std::string changed = changed_.evidence(); !changed.empty())
      return set_not_applicable(*finding, changed + ": the steps are not those of the noise");
    if (floor_.blocks().observations() < 2 * BlockAverages::kMinBlocks) {
      finding->gate = only_observations(floor_.blocks().observations()) + " of the noise";
      return;
    }
    if (record_.not_positive() > 0)
      return set_not_applicable(*finding, "losses that are not finite or not above 0");
    if (record_.without_rate() > 0 || !(record_.peak_rate() > 0))
      return set_not_measured(*finding, *context_, "the learning rate was", {"learning_rate"});
    const Estimate floor = floor_.blocks().mean({kQuarter, 0, 0, 0});
    const LossCurve curve = record_.curve();
    const ConstantPhase phase = constant_phase(curve, record_.peak_rate());
    if (phase.end < phase.begin + kFewestConstant) {
      finding->gate = "too few steps at a constant learning rate";
      return;
    }
    size_t begin = phase.begin;
    while (curve[begin].step < kTransient * curve[phase.end - 1].step) ++begin;
    size_t lowered = curve.size();
    while (lowered > phase.end && curve[lowered - 1].rate <= kLowered * record_.peak_rate())
      --lowered;
    if (lowered == curve.size()) {
      foretell(curve, begin, phase.end, floor, finding);
    } else if (curve.size() < lowered + kFewestLowered ||
               curve.back().step - curve[lowered].step < kLongEnough * curve.back().step) {
      finding->gate = "too few steps since the learning rate was lowered";
    } else {
      judge_decay(curve, begin, phase.end, lowered, floor, finding);
    }
  }

  /// Before the rate is lowered: what that should gain, and what the same steps at this rate would.
  void foretell(const LossCurve& curve, size_t begin, size_t end, const Estimate& floor,
                Finding* finding) const {
    finding->gate =
        end == curve.size()
            ? "the learning rate has not been lowered yet: there is nothing to compare the gain "
              "with"
            : "the learning rate is still being lowered: there is nothing to compare the gain "
              "with yet";
    const CurveMean level =
        curve_mean(curve, end - std::min<size_t>(end, kFewestLowered), end, nullptr);
    const double loss = std::exp(level.value);
    if (!floor.reliable || !(floor.low > 0)) {
      finding->gate += "; the size of the noise is uncertain, or still changes";
      return;
    }
    if (!(floor.high < kMuch * loss)) {
      finding->gate +=
          "; the noise of the steps comes to more than half of the loss, too much for a quadratic "
          "basin";
      return;
    }
    finding->measured = floor.value;
    finding->ci_low = floor.low * kLeastMeasured / kQuarter;
    finding->ci_high = floor.high * kMostMeasured / kQuarter;
    finding->window_begin = floor_.window_begin();
    finding->window_end = floor_.window_end();
    if (end != curve.size()) return;
    const double more = std::round(kOnward * curve[end - 1].step);
    const auto ahead = look_ahead(curve, begin, end, more);
    finding->advice = fmt::format(
        "{} of the loss of {} is the noise of steps this long: lowering the learning rate to 0 "
        "should gain about that much.",
        format_interval(finding->measured, finding->ci_low, finding->ci_high), format_number(loss));
    if (ahead) {
      finding->advice +=
          fmt::format(" Another {:.0f} steps at this rate should gain {}: {}.", more,
                      ahead->low > 0 ? format_interval(ahead->gain, ahead->low, ahead->high)
                                     : "at most " + format_number(ahead->high),
                      ahead->high < finding->ci_low   ? "begin the decay"
                      : ahead->low > finding->ci_high ? "it is too early for the decay"
                                                      : "about as much, as far as can be told");
    }
    finding->importance = finding->ci_low > kWorthIt * loss ? 0.5 : 0.25;
  }

  void judge_decay(const LossCurve& curve, size_t begin, size_t end, size_t lowered,
                   const Estimate& floor, Finding* finding) const {
    const auto fit = fit_loss_law(LossForm::kPower, {losses_within(curve, begin, end)});
    if (!fit) {
      finding->gate = "too few losses at the constant learning rate";
      return;
    }
    // The later half of what came at a lowered rate, for the decay to have had its effect.
    const size_t late = lowered + (curve.size() - lowered) / 2;
    const LossForecast forecast = fit->forecast(losses_within(curve, 0, curve.size()));
    const CurveMean off = curve_mean(curve, late, curve.size(), &forecast);
    const CurveMean level = curve_mean(curve, late, curve.size(), nullptr);
    double rate = 0;
    for (size_t i = late; i < curve.size(); ++i)
      rate += curve[i].rate / static_cast<double>(curve.size() - late);
    const double share = 1 - rate / record_.peak_rate();
    const double otherwise = std::exp(level.value - off.value);
    const double gain = otherwise - std::exp(level.value);
    const ForecastError uncertainty(curve, begin, end, *fit);
    finding->window_begin = static_cast<int64_t>(curve[begin].step);
    finding->window_end = static_cast<int64_t>(curve.back().step);
    if (uncertainty.wanders * otherwise > kWander * std::max(gain, share * floor.value)) {
      return set_not_applicable(*finding,
                                "the loss at the constant learning rate does not follow the "
                                "power law that would extrapolate it");
    }
    // The uncertainty of the prediction is counted with what was measured.
    const double freedom = std::min(uncertainty.freedom, floor.degrees_of_freedom);
    const double error = std::hypot(otherwise * uncertainty.of(off, *fit, 0),
                                    gain / std::max(floor.value, 1e-300) * floor.standard_error);
    Estimate estimate;
    estimate.value = gain;
    estimate.standard_error = error;
    estimate.degrees_of_freedom = freedom;
    estimate.reliable = floor.reliable;
    estimate.low = gain - student_t_quantile(0.95, freedom) * error;
    estimate.high = gain + student_t_quantile(0.95, freedom) * error;
    set_measured(*finding, estimate);
    finding->predicted = share * floor.value;
    set_verdict(*finding, judge(estimate, finding->predicted, kTolerance));
    finding->gate = fmt::format(
        "from step {:.0f} to {:.0f} at {} of the largest rate on average; at the constant rate the "
        "loss would have been {} at the same sum of rates",
        curve[late].step, curve.back().step, format_number(1 - share), format_number(otherwise));
    if (finding->verdict == Verdict::kUnderpowered) {
      finding->gate += "; the observed gain is too uncertain, or the noise still changes";
    } else if (finding->verdict == Verdict::kHolds) {
      finding->advice = fmt::format(
          "Lowering the learning rate removed the noise of the steps, {}, as predicted: use "
          "this to plan the next run's decay.",
          format_interval(gain, estimate.low, estimate.high));
    } else if (finding->verdict == Verdict::kViolated) {
      finding->importance = 0.35;
      finding->advice =
          gain < finding->predicted
              ? "The decay gained less than the noise of the steps: it was too short for flat "
                "directions, or the loss would not have fallen on at the constant rate as "
                "extrapolated."
              : "The decay gained more than the measured noise of the steps: the noise is "
                "larger than it looks (duplicate examples), or something else, such as a rate "
                "above the edge of stability, kept the loss up.";
    }
  }

  const RunContext* context_ = nullptr;
  ScheduleRecord record_;
  NoiseColumns noise_;
  ChangedGradients changed_;
  uint64_t settings_version_ = 0;
  std::string reason_;  // why it does not apply
  double rate_ = 0;
  double peak_ = 0;
  double effective_ = 0;  // rate, with momentum
  RecentHalf floor_{1};   // eta tr Sigma_mb at the largest rate
};

}  // namespace

std::unique_ptr<Law> make_decay_gain() { return std::make_unique<DecayGain>(); }

}  // namespace tycho::analyzer
