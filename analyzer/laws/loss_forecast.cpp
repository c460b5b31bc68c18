// At a constant learning rate the training loss of many networks follows L0 + a t^-mu, and where
// the rate falls the annealing law (src/schedule/loss_law.h). Neither is derived, and exponents are
// fits: what can be tested is the forecast. The law is fitted to the first two thirds or so of the
// run, and what it says of the rest is held against what came, and against the trivial forecast
// that the loss stays where it is.
//
// Of each third of the rest the mean of ln(loss) has an error by the noise of batches, and its
// forecast one by the fit's; where the residuals of the fit are correlated, both are larger (see
// src/schedule/forecast_error.h). Where they are correlated for as long as the fit and not small,
// the loss does not follow the law to begin with.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/schedule/constant_phase.h"
#include "src/schedule/fit_loss_law.h"
#include "src/schedule/forecast_error.h"
#include "src/schedule/schedule_record.h"
#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

using Eigen::Index;

constexpr uint64_t kFewestLosses = 128;
constexpr size_t kFewestFitted = 24;  // bins
constexpr size_t kFewestJudged = 6;   // bins
constexpr double kPhase = 0.5;        // of the steps at a constant rate, for the power law
constexpr double kRise = 0.05;        // of the peak: the rate rises again
constexpr double kFell = 0.2;         // of the peak, within what is fitted
constexpr double kFitted = 0.75;      // of the steps, at most
constexpr double kLeastFitted = 0.5;  // of the steps
constexpr double kGridStep = 1.189;   // of where the fit may end: a quarter of an octave
constexpr double kTransient = 0.1;    // of the fitted steps, left out
constexpr double kLastValue = 0.1;    // of the fitted steps: what "the last value" averages
constexpr double kShare = 0.3;        // of the forecast change of ln(loss): tolerance
constexpr double kAccuracy = 0.001;   // added to it
constexpr double kWander = 0.1;  // of the forecast change: residuals that wander further refuse
constexpr size_t kStretches = 3;
constexpr double kOnward = 0.5;  // of the run, to look ahead

const LawDescription& law() {
  static const LawDescription description = {
      "loss_forecast",
      "Forecast of the loss",
      Line::kEmpiricalLaws,
      "L(t) = L0 + a t^-mu at a constant learning rate; L = L0 + A S1^-a - C S2 where the rate "
      "falls, S1 the sum of the rates and S2 their annealing area. Fitted to the first part of "
      "the run, its forecast of the rest is off by at most 0.3 of the change of ln(loss) that "
      "it forecasts (and 0.001)",
      "A positive loss; a learning rate that is constant or falls after its warm-up; the first "
      "part follows the law; the loss moves enough to distinguish the forecast from the last "
      "value",
      "If it holds, the gain of more steps at this rate is known in advance: if it is too "
      "small, stop, or begin the decay",
      "Luo et al. 2025, arXiv:2503.12811; Tissue et al. 2024, arXiv:2408.11029; Qiu et al. 2025, "
      "arXiv:2507.02119",
      {"loss", "learning_rate"},
      {"The exponents and L0 are fits, not predictions: nothing is claimed about them.",
       "It forecasts the training loss, not the held-out loss.",
       "It does not forecast the loss at a rate that was never used."}};
  return description;
}

/// What is judged: points of the curve from `begin` on are fitted up to `split`, judged up to
/// `end`.
struct Window {
  LossForm form = LossForm::kPower;
  size_t begin = 0;
  size_t split = 0;
  size_t end = 0;
  std::string refused;
};

class LossForecastLaw : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    record_.begin(context);
  }

  void observe(const Frame& frame) override { record_.observe(frame); }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.evidence_statistic = "loss";
    judge_run(&finding);
    return {finding};
  }

 private:
  void judge_run(Finding* finding) const {
    const uint64_t observed = record_.losses() + record_.not_positive();
    if (observed == 0) return set_not_measured(*finding, *context_, "the loss was", {"loss"});
    if (observed < kFewestLosses) {
      finding->gate = only_observations(observed);
      return;
    }
    if (record_.not_positive() > 0) {
      return set_not_applicable(
          *finding,
          fmt::format("{} of the losses {} not finite or not above 0", record_.not_positive(),
                      record_.not_positive() == 1 ? "is" : "are"));
    }
    if (record_.without_rate() > 0)
      return set_not_measured(*finding, *context_, "the learning rate was", {"learning_rate"});
    if (!(record_.peak_rate() > 0)) return set_not_applicable(*finding, "the learning rate is 0");
    const LossCurve curve = record_.curve();
    const Window window = choose(curve);
    if (!window.refused.empty()) return set_not_applicable(*finding, window.refused);
    if (window.split < window.begin + kFewestFitted || window.end < window.split + kFewestJudged) {
      finding->gate = "too few steps to fit one part and test another";
      return;
    }
    judge(curve, window, finding);
  }

  Window choose(const LossCurve& curve) const {
    Window window;
    const double peak = record_.peak_rate();
    const auto [warm, constant] = constant_phase(curve, peak);
    if (warm == curve.size()) {
      window.refused = "the largest learning rate did not last";
      return window;
    }
    const double start = curve[warm].step;
    const double span = curve.back().step - start;
    window.end = curve.size();
    if (constant > warm && curve[constant - 1].step - start >= kPhase * span) {
      window.end = constant;
    } else {
      window.form = LossForm::kAnnealing;
      double least = peak;
      for (size_t i = warm; i < curve.size(); ++i) {
        least = std::min(least, curve[i].rate);
        if (curve[i].rate > least + kRise * peak) {
          window.refused =
              fmt::format("the learning rate rises again, at about step {:.0f}", curve[i].step);
          return window;
        }
      }
    }
    const double length = curve[window.end - 1].step - start;
    const double latest = start + kFitted * length;
    // On a grid, so that the same fit serves for a while.
    double split = std::pow(kGridStep, std::floor(std::log(latest + 1) / std::log(kGridStep)));
    if (split < start + kLeastFitted * length) split = latest;
    window.split = window.end;
    while (window.split > warm && curve[window.split - 1].step > split) --window.split;
    window.begin = warm;
    while (window.begin < window.split && curve[window.begin].step < kTransient * split)
      ++window.begin;
    if (window.form == LossForm::kAnnealing && window.split > warm &&
        curve[window.split - 1].rate > (1 - kFell) * peak) {
      window.refused = "the learning rate fell too late to fit its effect and test it";
    }
    return window;
  }

  void judge(const LossCurve& curve, const Window& window, Finding* finding) const {
    const std::optional<LossFit>& fit =
        fit_to(losses_within(curve, window.begin, window.split), window.form);
    finding->unit = "loss";
    finding->window_begin = static_cast<int64_t>(curve[window.begin].step);
    finding->window_end = static_cast<int64_t>(curve[window.end - 1].step);
    const std::string fitted =
        fmt::format("{} fitted to steps {:.0f} to {:.0f}", to_string(window.form),
                    curve[window.begin].step, curve[window.split - 1].step);
    if (!fit) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate = "no law could be " + fitted.substr(fitted.find("fitted"));
      return;
    }
    size_t last_begin = window.split;
    const double recent = (1 - kLastValue) * curve[window.split - 1].step;
    while (last_begin > window.begin && curve[last_begin - 1].step >= recent) --last_begin;
    const CurveMean last = curve_mean(curve, last_begin, window.split, nullptr);
    const LossForecast forecast = fit->forecast(losses_within(curve, 0, window.end));
    std::vector<CurveMean> off;
    std::vector<CurveMean> level;
    for (size_t s = 0; s < kStretches; ++s) {
      const size_t judged = window.end - window.split;
      const size_t begin = window.split + judged * s / kStretches;
      const size_t end = window.split + judged * (s + 1) / kStretches;
      off.push_back(curve_mean(curve, begin, end, &forecast));
      level.push_back(curve_mean(curve, begin, end, nullptr));
    }
    const double change = level.back().value - off.back().value - last.value;  // that is forecast
    const ForecastError uncertainty(curve, window.begin, window.split, *fit);
    if (uncertainty.wanders > kWander * std::fabs(change)) {
      return set_not_applicable(
          *finding, fmt::format("the {} does not describe the data it was fitted to: its "
                                "residuals wander, by {} % of the loss",
                                fitted, format_number(100 * uncertainty.wanders)));
    }
    const double quantile = student_t_quantile(0.95, uncertainty.freedom);
    const double strict = student_t_quantile(1 - 0.05 / kStretches, uncertainty.freedom);
    const double tolerance = kAccuracy + kShare * std::fabs(change);
    bool within = true;
    bool outside = false;
    double worst = 0;
    double error = 0;
    for (const CurveMean& each : off) {
      error = uncertainty.of(each, *fit, change);
      within = within && std::fabs(each.value) + quantile * error <= tolerance;
      outside = outside || std::fabs(each.value) - strict * error > tolerance;
      worst = std::max(worst, std::fabs(each.value));
    }
    const double trivial = std::fabs(level.back().value - last.value);
    const double of_last = std::sqrt(uncertainty.noise * (last.variance + level.back().variance));
    const bool moved = trivial - quantile * of_last > tolerance;
    finding->measured = std::exp(level.back().value);
    finding->predicted = std::exp(level.back().value - off.back().value);
    finding->ci_low = std::exp(level.back().value - quantile * error);
    finding->ci_high = std::exp(level.back().value + quantile * error);
    finding->evidence_level = finding->predicted;
    finding->gate = fmt::format(
        "{}; its forecast of the steps up to {:.0f} is off by at most {} %, the last value by {} % "
        "at their end",
        fitted, curve[window.end - 1].step, format_number(100 * std::expm1(worst)),
        format_number(100 * std::expm1(trivial)));
    set_verdict(*finding, outside           ? Verdict::kViolated
                          : within && moved ? Verdict::kHolds
                                            : Verdict::kUnderpowered);
    if (finding->verdict == Verdict::kUnderpowered) {
      finding->gate += !moved ? "; the loss moved too little, compared with its noise, to "
                                "distinguish them"
                              : "; the noise hides how good it is";
    } else if (finding->verdict == Verdict::kViolated) {
      finding->importance = 0.35;  // no harm is done
      finding->advice = fmt::format(
          "The loss left the curve forecast from its first part, {}: do not extrapolate this "
          "curve.",
          finding->measured < finding->predicted ? "and fell further" : "and stayed above it");
    } else {
      advise(curve, window, finding);
    }
  }

  /// What more steps at a constant rate would gain, by the law fitted to all that was at this rate.
  void advise(const LossCurve& curve, const Window& window, Finding* finding) const {
    finding->importance = 0.5;
    if (window.form != LossForm::kPower) {
      finding->advice =
          "The annealing law describes this run: forecasts of another length or decay can be "
          "trusted to the same accuracy as here.";
      return;
    }
    const double end = curve[window.end - 1].step;
    const double more = std::round(kOnward * end);
    const auto ahead = look_ahead(curve, window.begin, window.end, more);
    if (!ahead) return;
    const bool over = window.end == curve.size();
    finding->advice = fmt::format(
        "{} {:.0f} steps at the learning rate {} {} lower{} the loss from {} by {}{}.",
        over ? "Another" : fmt::format("Before it fell at about step {:.0f}, another", end), more,
        format_number(record_.peak_rate()), over ? "should" : "would have", over ? "" : "ed",
        format_number(ahead->loss), format_interval(ahead->gain, ahead->low, ahead->high),
        over ? ": if that is too little, stop or lower the rate" : "");
  }

  const std::optional<LossFit>& fit_to(const LossCurve& curve, LossForm form) const {
    double sum = 0;
    for (const LossCurvePoint& point : curve)
      sum += std::isnan(point.loss) ? 0 : point.loss + point.error;
    if (!known_ || known_->form != form || known_->points != curve.size() || known_->sum != sum)
      known_ = Known{form, curve.size(), sum, fit_loss_law(form, {curve})};
    return known_->fit;
  }

  /// The last fit and what it was made from: findings() are asked for more often than the fitted
  /// part changes.
  struct Known {
    LossForm form;
    size_t points;
    double sum;
    std::optional<LossFit> fit;
  };

  const RunContext* context_ = nullptr;
  ScheduleRecord record_;
  mutable std::optional<Known> known_;
};

}  // namespace

std::unique_ptr<Law> make_loss_forecast() { return std::make_unique<LossForecastLaw>(); }

}  // namespace tycho::analyzer
