// Runs that differ in the course of their learning rate and in nothing else lie on one multi-power
// law (src/schedule/loss_law.h): fitted to all schedules but one it forecasts that one, which was
// never seen (Luo et al. 2025; their held-out schedules are off by 0.2 % of the loss). Each
// schedule is held out once. Against it stands the trivial forecast, the mean of the other runs at
// the same step, which does not know the schedule.
//
// Judged is the mean of ln(loss) over the last third of the run that is held out. It may be off by
// the noise of its batches, the uncertainty of the fit, what such a law is good to, and by what
// runs differ in anyway: the mean residuals of the fitted runs.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "comparisons/comparison_law.h"
#include "laws/law_support.h"
#include "src/schedule/constant_phase.h"
#include "src/schedule/fit_loss_law.h"
#include "src/schedule/forecast_error.h"
#include "src/statistics/long_run_variance.h"
#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kFewestSchedules = 3;
constexpr size_t kFewestPoints = 24;  // of a run
constexpr double kTransient = 0.05;   // of the steps, left out of the fits
constexpr double kJudgedFrom = 2.0 / 3;
constexpr double kAccuracy = 0.003;  // of ln(loss)
constexpr double kShare = 0.3;       // of what the schedule is forecast to change
constexpr double kFall = 0.2;        // of the peak: a schedule that shows what falling does
constexpr double kSameRate = 0.05;   // of the peak
constexpr double kSameLength = 0.05;
constexpr double kLargestDoubt = 0.05;

const LawDescription& law() {
  static const LawDescription description = {
      "schedule_transfer",
      "Forecast of other learning-rate schedules",
      Line::kEmpiricalLaws,
      "L(t) = L0 + A S1^-a - B sum_k (eta_{k-1} - eta_k) (1 - (1 + C eta_k^-g S_k)^-b), fitted to "
      "all schedules but one, forecasts that one: ln(loss) over its last third is off by at most "
      "0.3 of what the schedule changes (and 0.003)",
      "At least three schedules of the learning rate, with a falling one among those fitted; "
      "runs equal in everything else; a positive loss",
      "If it holds, choose the next schedule by its forecast instead of by trial; if it fails, "
      "do not carry over the gain of a decay from one schedule to another",
      "Luo et al. 2025, arXiv:2503.12811",
      {"loss", "learning_rate"},
      {"The constants are fits, not predictions.",
       "It forecasts the training loss, not the held-out loss.",
       "A restart of the rate counts as a fall with the opposite sign, which the publication "
       "did not test."}};
  return description;
}

struct Run {
  size_t index = 0;
  LossCurve curve;
  double peak = 0;
  bool falls = false;
};

/// The rate at a step, on straight lines.
double rate_at(const LossCurve& curve, double step) {
  size_t i = 0;
  while (i + 1 < curve.size() && curve[i + 1].step < step) ++i;
  if (i + 1 == curve.size() || curve[i].step >= step) return curve[i].rate;
  const double share = (step - curve[i].step) / (curve[i + 1].step - curve[i].step);
  return curve[i].rate + share * (curve[i + 1].rate - curve[i].rate);
}

/// ln(loss) of the same; that of the nearest point outside.
double log_loss_at(const LossCurve& curve, double step) {
  double before = kUnknown;
  double at = 0;
  for (const LossCurvePoint& point : curve) {
    if (std::isnan(point.loss)) continue;
    const double value = std::log(point.loss);
    if (point.step >= step) {
      if (std::isnan(before)) return value;
      return before + (step - at) / (point.step - at) * (value - before);
    }
    before = value;
    at = point.step;
  }
  return before;
}

bool same_schedule(const Run& a, const Run& b) {
  const double end = a.curve.back().step;
  if (std::fabs(b.curve.back().step - end) > kSameLength * end) return false;
  constexpr int kLooks = 32;
  for (int i = 1; i < kLooks; ++i) {
    const double step = end * i / kLooks;
    if (std::fabs(rate_at(a.curve, step) - rate_at(b.curve, step)) > kSameRate * a.peak)
      return false;
  }
  return true;
}

/// From a digest's bins; nothing where loss or rate were not recorded, or have no logarithm.
bool take(const RunDigest& digest, size_t index, Run* run) {
  const std::vector<RunBin>* losses = digest.series("loss");
  const std::vector<RunBin>* rates = digest.series("learning_rate");
  if (losses == nullptr || rates == nullptr) return false;
  run->index = index;
  std::map<size_t, double> rate;
  for (const RunBin& bin : *rates) rate[bin.bin] = bin.mean;
  double square = 0;
  double freedom = 0;
  for (const RunBin& bin : *losses) {
    const auto found = rate.find(bin.bin);
    if (found == rate.end()) continue;
    if (bin.count == 0 || bin.non_finite > 0 || !(bin.min > 0) || !(found->second >= 0))
      return false;
    LossCurvePoint point;
    point.step = bin.position.step;
    point.rate = found->second;
    point.loss = bin.mean;
    const LossCurvePoint before = run->curve.empty() ? LossCurvePoint() : run->curve.back();
    point.sum = before.sum + (point.step + (run->curve.empty() ? 1 : 0) - before.step) * 0.5 *
                                 ((run->curve.empty() ? point.rate : before.rate) + point.rate);
    // Of single losses, relative; the same for the whole run.
    square += bin.square / (bin.mean * bin.mean);
    freedom += static_cast<double>(bin.count) - 1;
    point.error = 1 / std::sqrt(static_cast<double>(bin.count));
    run->peak = std::max(run->peak, point.rate);
    run->curve.push_back(point);
  }
  if (run->curve.size() < kFewestPoints || !(run->peak > 0)) return false;
  const double deviation = freedom > 0 ? std::sqrt(square / freedom) : 0;
  const double from = kTransient * run->curve.back().step;
  const size_t warm = constant_phase(run->curve, run->peak).begin;
  double least = run->peak;
  for (size_t i = 0; i < run->curve.size(); ++i) {
    LossCurvePoint& point = run->curve[i];
    point.error *= deviation;
    if (i < warm || point.step < from) point.loss = kUnknown;
    if (i >= warm) least = std::min(least, point.rate);
  }
  run->falls = least < (1 - kFall) * run->peak;
  return true;
}

/// Of a schedule that was held out.
struct Judged {
  size_t run = 0;
  double measured = 0;  // mean ln(loss)
  double forecast = 0;
  double trivial = 0;
  double error = 0;
  double freedom = 0;
  double first = 0;  // steps
  double last = 0;
  double off() const { return measured - forecast; }
  double tolerance() const { return kAccuracy + kShare * std::fabs(forecast - trivial); }
};

class ScheduleTransfer : public ComparisonLaw {
 public:
  const LawDescription& description() const override { return law(); }

  std::vector<ComparisonFinding> findings(const RunSet& set) const override {
    std::vector<ComparisonFinding> all;
    for (const std::vector<size_t>& alike : groups(set)) {
      std::vector<std::vector<Run>> schedules;
      for (const size_t index : alike) {
        Run run;
        if (!take(set.runs()[index], index, &run)) continue;
        const auto same = std::find_if(
            schedules.begin(), schedules.end(),
            [&](const std::vector<Run>& other) { return same_schedule(other.front(), run); });
        if (same == schedules.end()) {
          schedules.push_back({run});
        } else {
          same->push_back(run);
        }
      }
      if (schedules.size() >= kFewestSchedules) all.push_back(judge(set, schedules));
    }
    if (all.empty()) {
      all.push_back(not_applicable(
          law(), "no three runs that differ in the schedule of their learning rate only"));
    }
    return all;
  }

 private:
  /// Runs that may differ in the learning rate, in labels and in seeds.
  static std::vector<std::vector<size_t>> groups(const RunSet& set) {
    std::map<std::string, std::vector<size_t>> result;
    for (size_t r = 0; r < set.runs().size(); ++r) {
      std::string key;
      for (const Difference& difference : set.differences()) {
        const bool counts =
            difference.kind == SettingKind::kTraining || difference.kind == SettingKind::kShape;
        if (!counts || difference.name.rfind("learning rate", 0) == 0) continue;
        key += difference.value[r] + "\n";
      }
      result[key].push_back(r);
    }
    std::vector<std::vector<size_t>> groups;
    groups.reserve(result.size());
    for (auto& [key, runs] : result) groups.push_back(std::move(runs));
    return groups;
  }

  static ComparisonFinding judge(const RunSet& set,
                                 const std::vector<std::vector<Run>>& schedules) {
    std::vector<std::string> names;
    names.reserve(schedules.size());
    for (const std::vector<Run>& schedule : schedules)
      names.push_back(set.label(schedule.front().index));
    ComparisonFinding finding = start_comparison(law(), "runs", "schedules of " + enumerate(names));
    finding.unit = "loss";
    finding.evidence_statistic = "loss";
    std::vector<Judged> judged;
    for (size_t held_out = 0; held_out < schedules.size(); ++held_out)
      hold_out(schedules, held_out, &judged);
    if (judged.empty()) {
      set_verdict(finding, Verdict::kUnderpowered);
      finding.gate = "for no schedule do the others show the effect of a falling rate";
      return finding;
    }
    bool within = true;
    bool outside = false;
    bool moved = false;
    const Judged* worst = &judged.front();
    for (const Judged& each : judged) {
      const double quantile = student_t_quantile(0.95, each.freedom);
      const double strict =
          student_t_quantile(1 - 0.05 / static_cast<double>(judged.size()), each.freedom);
      within = within && std::fabs(each.off()) + quantile * each.error <= each.tolerance();
      outside = outside || std::fabs(each.off()) - strict * each.error > each.tolerance();
      moved = moved ||
              std::fabs(each.measured - each.trivial) - quantile * each.error > each.tolerance();
      if (std::fabs(each.off()) > std::fabs(worst->off())) worst = &each;
    }
    const double quantile = student_t_quantile(0.95, worst->freedom);
    finding.measured = std::exp(worst->measured);
    finding.predicted = std::exp(worst->forecast);
    finding.ci_low = std::exp(worst->measured - quantile * worst->error);
    finding.ci_high = std::exp(worst->measured + quantile * worst->error);
    finding.window_begin = static_cast<int64_t>(worst->first);
    finding.window_end = static_cast<int64_t>(worst->last);
    set_verdict(finding, outside           ? Verdict::kViolated
                         : within && moved ? Verdict::kHolds
                                           : Verdict::kUnderpowered);
    finding.gate = fmt::format(
        "{} of {} schedules held out in turn; the worst is {}: its forecast is off by {} %, the "
        "mean "
        "of the others by {} %",
        judged.size(), schedules.size(), set.label(worst->run),
        format_number(100 * std::expm1(std::fabs(worst->off()))),
        format_number(100 * std::expm1(std::fabs(worst->measured - worst->trivial))));
    if (finding.verdict == Verdict::kHolds) {
      finding.importance = 0.5;
      finding.advice =
          "Each schedule is forecast from the others: choose the next one by its forecast.";
    } else if (finding.verdict == Verdict::kViolated) {
      finding.importance = 0.4;
      finding.advice = fmt::format(
          "The other schedules do not forecast {}: the gain of a decay in one run is no guide "
          "to another, or the runs differ in more than their schedule.",
          set.label(worst->run));
    } else if (!moved) {
      finding.gate += "; the schedules differ too little to tell";
    }
    return finding;
  }

  static void hold_out(const std::vector<std::vector<Run>>& schedules, size_t held_out,
                       std::vector<Judged>* judged) {
    std::vector<LossCurve> curves;
    bool falls = false;
    for (size_t s = 0; s < schedules.size(); ++s) {
      if (s == held_out) continue;
      for (const Run& run : schedules[s]) {
        curves.push_back(run.curve);
        falls = falls || run.falls;
      }
    }
    if (!falls) return;
    const auto fit = fit_loss_law(LossForm::kMultiPower, curves);
    if (!fit) return;
    // Of runs that are independent: mean variances, whose degrees of freedom add up.
    double inflation = 0;
    double freedom = 0;
    double between = 0;  // variance of the means of runs
    double wanders = 0;
    for (size_t c = 0; c < curves.size(); ++c) {
      const LongRunVariance spread = long_run_variance(fit->residuals[c]);
      inflation += std::max(1.0, spread.inflation) / static_cast<double>(curves.size());
      freedom += spread.degrees_of_freedom;
      double sum = 0;
      double square = 0;
      size_t r = 0;
      for (const LossCurvePoint& point : curves[c]) {
        if (std::isnan(point.loss)) continue;
        const double off =
            fit->residuals[c][r++] * std::max(point.error, LossFitOptions().least_error);
        sum += off;
        square += off * off;
      }
      const auto count = static_cast<double>(r);
      if (spread.too_slow > kLargestDoubt) wanders = std::max(wanders, std::sqrt(square / count));
      between += sum * sum / (count * count) / static_cast<double>(curves.size() - 1);
    }
    for (const Run& run : schedules[held_out]) {
      const LossForecast forecast = fit->forecast(run.curve);
      size_t from = 0;
      while (run.curve[from].step < kJudgedFrom * run.curve.back().step) ++from;
      const CurveMean off = curve_mean(run.curve, from, run.curve.size(), &forecast);
      const CurveMean level = curve_mean(run.curve, from, run.curve.size(), nullptr);
      Judged each;
      each.run = run.index;
      each.measured = level.value;
      each.forecast = level.value - off.value;
      double weights = 0;
      for (size_t i = from; i < run.curve.size(); ++i) {
        for (const LossCurve& other : curves) {
          each.trivial += log_loss_at(other, run.curve[i].step);
          ++weights;
        }
      }
      each.trivial /= weights;
      ForecastError error;
      error.inflation = inflation;
      error.noise = inflation * fit->scatter * fit->scatter;
      error.wanders = std::sqrt(wanders * wanders + between);
      each.error = error.of(off, *fit, each.forecast - each.trivial);
      each.freedom = std::min(freedom, fit->degrees_of_freedom);
      each.first = run.curve[from].step;
      each.last = run.curve.back().step;
      judged->push_back(each);
    }
  }
};

}  // namespace

std::unique_ptr<ComparisonLaw> make_schedule_transfer() {
  return std::make_unique<ScheduleTransfer>();
}

}  // namespace tycho::analyzer
