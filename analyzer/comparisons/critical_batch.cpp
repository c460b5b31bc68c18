// A step of SGD at batch size B on a local quadratic makes 1/(1 + B_noise/B) of the progress of a
// noiseless one (McCandlish et al. 2018, eq. 2.7), so that to a given loss it takes
//   S = S_min (1 + B_crit/B) steps and E = S B = E_min (1 + B/B_crit) examples,
// with E_min = B_crit S_min: (S/S_min - 1)(E/E_min - 1) = 1. Two numbers are fitted, in the
// logarithm of S; what is tested is that one hyperbola passes through all batch sizes.
//
// For a given B_crit the best ln S_min is the mean of ln S - ln(1 + B_crit/B), which leaves one
// number to search. Its interval is that of the likelihood ratio: all B_crit whose residual exceeds
// the least by no more than a factor 1 + F/(n - 2), F the 95 % quantile of Fisher's distribution
// with 1 and n - 2 degrees of freedom, which is the square of Student's.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "comparisons/comparison_law.h"
#include "comparisons/hyperbola.h"
#include "laws/law_support.h"
#include "src/compare/curves.h"

namespace tycho::analyzer {
namespace {

/// Of a batch size from the fit: by this factor the law may be off.
constexpr double kTolerance = 0.25;
/// The target stays above the lowest loss that all runs reach by this share of what they gained:
/// at the lowest itself the curve is flat and the step at which it is reached is chance.
constexpr double kMargin = 0.05;

const LawDescription& law() {
  static const LawDescription description = {
      "critical_batch",
      "Critical batch size from a batch sweep",
      Line::kHyperparameters,
      "(S/S_min - 1)(E/E_min - 1) = 1, S steps and E examples to a target loss; equivalently S = "
      "S_min (1 + B_crit/B), B_crit = E_min/S_min",
      "At least three batch sizes that reach a common loss, each at its best learning rate; "
      "independent examples; learning rate constant or on the same schedule",
      "Below B_crit a larger batch saves steps almost for free; above it, it wastes examples. At "
      "B_crit a run takes twice the fewest steps and twice the fewest examples",
      "McCandlish et al. 2018, arXiv:1812.06162, eqs 2.11, 2.12",
      {"loss", "probe_loss", "batch_size", "grad_noise_trace", "grad_signal_sq"},
      {"B_crit is a fit, not a prediction: the law predicts the shape of the curve, not its "
       "position.",
       "It depends on the target loss and grows as the loss falls.",
       "With one learning rate for all batch sizes the small ones are held back and B_crit comes "
       "out "
       "wrong.",
       "For language models trained by Adam the hyperbola may fail (Merrill et al. 2025, "
       "arXiv:2505.23971)."}};
  return description;
}

class CriticalBatch : public ComparisonLaw {
 public:
  const LawDescription& description() const override { return law(); }

  std::vector<ComparisonFinding> findings(const RunSet& set) const override {
    std::vector<ComparisonFinding> all;
    std::string shorter;
    // Every batch size has its own best learning rate, and Adam's betas may go with it.
    std::set<std::string> free = {"learning rate", "beta1", "beta2", "epsilon"};
    for (const Difference& difference : set.differences()) {
      if (difference.name.rfind("learning rate of group", 0) == 0) free.insert(difference.name);
    }
    for (const Ladder& ladder : set.ladders(Axis::kBatchSize, free)) {
      if (ladder.levels.size() < kFewestLevels) {
        shorter = ladder.describe();
        continue;
      }
      all.push_back(judge_sweep(set, ladder));
    }
    if (all.empty()) {
      all.push_back(not_applicable(
          law(), shorter.empty()
                     ? "no sweep over the batch size among these runs"
                     : "a hyperbola needs three batch sizes: there is only " + shorter));
    }
    return all;
  }

 private:
  struct Candidate {
    size_t run;
    double rate;
    Curve curve;
  };

  static ComparisonFinding judge_sweep(const RunSet& set, const Ladder& ladder) {
    ComparisonFinding finding = start_comparison(law(), "runs", ladder.describe());
    std::vector<size_t> runs;
    for (const Level& level : ladder.levels)
      runs.insert(runs.end(), level.runs.begin(), level.runs.end());
    const std::string statistic = loss_statistic(set, runs);
    finding.evidence_statistic = statistic;
    // By batch size, then by learning rate.
    std::map<double, std::map<double, std::vector<Curve>>> curves;
    double start = std::numeric_limits<double>::infinity();
    for (const size_t run : runs) {
      Curve curve = smooth_curve(set.runs()[run], statistic);
      if (curve.empty()) continue;
      start = std::min(start, curve.points.front().value);
      const double rate = set.value(Axis::kLearningRate, run);
      // Rates that differ by less than 2 % are one: a schedule may not quite reach its peak.
      const double same = rate > 0 && std::isfinite(rate) ? std::round(50 * std::log(rate)) : 0;
      curves[set.value(Axis::kBatchSize, run)][same].push_back(std::move(curve));
    }
    if (curves.size() < kFewestLevels) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate = "the loss was recorded at fewer than three batch sizes";
      return finding;
    }
    // The lowest loss that the best learning rate of every batch size reaches in all of its runs.
    double lowest = -std::numeric_limits<double>::infinity();
    for (const auto& [batch, rates] : curves) {
      double best = std::numeric_limits<double>::infinity();
      for (const auto& [rate, replicates] : rates) {
        double worst = -std::numeric_limits<double>::infinity();
        for (const Curve& curve : replicates) worst = std::max(worst, curve.lowest());
        best = std::min(best, worst);
      }
      lowest = std::max(lowest, best);
    }
    const double target = lowest + kMargin * (start - lowest);
    if (!(start > lowest) || !std::isfinite(target)) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate = "these runs reach no common loss below the one they start with";
      return finding;
    }
    std::vector<HyperbolaPoint> points;
    bool tuned = false;
    for (const auto& [batch, rates] : curves) {
      std::vector<HyperbolaPoint> best;
      double fewest = std::numeric_limits<double>::infinity();
      tuned = tuned || rates.size() > 1;
      for (const auto& [rate, replicates] : rates) {
        std::vector<HyperbolaPoint> reached;
        double sum = 0;
        for (const Curve& curve : replicates) {
          const Position at = curve.first_at_or_below(target);
          if (!std::isfinite(at.step)) break;
          // Steps count from 0: after step 0 one step was made.
          const double steps = at.step + 1;
          const double examples = std::isfinite(at.examples) ? at.examples : steps * batch;
          reached.push_back({steps, examples});
          sum += std::log(steps);
        }
        if (reached.size() < replicates.size() || reached.empty()) continue;
        sum /= static_cast<double>(reached.size());
        if (sum < fewest) {
          fewest = sum;
          best = reached;
        }
      }
      points.insert(points.end(), best.begin(), best.end());
    }
    judge_fit(fit_hyperbola(points), points, target, statistic, &finding);
    const bool varies =
        std::any_of(ladder.follows.begin(), ladder.follows.end(),
                    [](const std::string& name) { return name == "learning rate"; });
    if (!tuned && !varies) {
      finding.gate +=
          "; all batch sizes have the same learning rate, but the law assumes the best for each";
    }
    compare_with_noise(set, runs, &finding);
    return finding;
  }

  static void judge_fit(const HyperbolaFit& fit, const std::vector<HyperbolaPoint>& points,
                        double target, const std::string& statistic, ComparisonFinding* finding) {
    finding->unit = "examples";
    finding->measured = fit.critical_batch;
    finding->ci_low = fit.low;
    finding->ci_high = fit.high;
    std::map<double, std::vector<double>> residual;  // by batch size, a whole number
    double least = std::numeric_limits<double>::infinity();
    double largest = 0;
    for (const HyperbolaPoint& point : points) {
      const double batch = point.examples / point.steps;
      least = std::min(least, std::round(batch));
      largest = std::max(largest, std::round(batch));
      finding->points.emplace_back(point.steps, point.examples);
      residual[std::round(batch)].push_back(std::log(point.steps / fit.steps(batch)));
    }
    constexpr int kCurvePoints = 60;
    for (int i = 0; i <= kCurvePoints && fit.known; ++i) {
      const double batch = least / 4 * std::pow(16 * largest / least, i / double{kCurvePoints});
      finding->curve.emplace_back(fit.steps(batch), fit.steps(batch) * batch);
    }
    if (!fit.known) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate = "the fit does not converge";
      return;
    }
    // Mean residual of each batch size against its own scatter between seeds.
    double pooled = 0;
    double freedom = 0;
    for (const auto& [batch, of] : residual) {
      const double mean = average(of);
      for (const double r : of) pooled += (r - mean) * (r - mean);
      freedom += static_cast<double>(of.size()) - 1;
    }
    const double scatter = freedom > 0 ? std::sqrt(pooled / freedom) : 0;
    const double quantile = freedom > 0 ? student_t_quantile(0.95, freedom) : 0;
    double worst = 0;
    double certain = 0;  // of it, what seeds do not explain
    double worst_batch = 0;
    for (const auto& [batch, of] : residual) {
      const double off = std::fabs(average(of));
      if (off > worst) {
        worst = off;
        worst_batch = batch;
      }
      certain =
          std::max(certain, off - quantile * scatter / std::sqrt(static_cast<double>(of.size())));
    }
    const double allowed = std::log1p(kTolerance);
    const bool surrounded = fit.low > 0 && std::isfinite(fit.high) && fit.high < 30 * fit.low;
    finding->gate = fmt::format(
        "a fit to the steps at which the smoothed {} first reaches {}: S_min {} steps, E_min {} "
        "examples; the worst batch size ({}) is {:.0f} % off",
        statistic, format_number(target), format_number(fit.least_steps),
        format_number(fit.least_steps * fit.critical_batch), axis_number(worst_batch),
        100 * std::expm1(worst));
    if (certain > allowed) {
      set_verdict(*finding, Verdict::kViolated);
      finding->advice = fmt::format(
          "One hyperbola does not fit these batch sizes (off by {:.0f} % at {}): do not choose "
          "a batch size by B_crit. The usual reason is a learning rate that is not the best for "
          "its batch size: sweep it at each batch size.",
          100 * std::expm1(worst), axis_number(worst_batch));
      return;
    }
    if (worst > allowed || !surrounded || residual.size() < kFewestLevels) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->importance = 0.3;
      if (!(fit.low > 0)) {
        finding->advice = fmt::format(
            "All batch sizes from {} to {} take nearly the same number of steps: they are above "
            "the critical batch size, which is at most {}. A smaller batch reaches the same loss "
            "with fewer examples.",
            axis_number(least), axis_number(largest), format_number(fit.high));
      } else if (!std::isfinite(fit.high)) {
        finding->advice = fmt::format(
            "Steps fall almost in proportion to the batch size up to {}: it is below the critical "
            "batch size, which is at least {}. A larger batch saves steps at no cost in examples.",
            axis_number(largest), format_number(fit.low));
      } else {
        finding->gate +=
            "; the fit leaves B_crit open within more than a factor of 30, or more "
            "than its tolerance at one batch size";
        finding->advice =
            "The critical batch size is not known well enough: add batch sizes further apart, and "
            "seeds.";
      }
      return;
    }
    set_verdict(*finding, Verdict::kHolds);
    finding->importance = 0.6;
    const double batch = fit.critical_batch;
    finding->advice = fmt::format(
        "B_crit is {} examples at this loss (a fit). Of the batch sizes tried, {} needs {:.1f} "
        "times the fewest steps and {:.1f} times the fewest examples, {} needs {:.1f} and "
        "{:.1f}. Use about {} to balance both, less if examples or energy are scarce, more if "
        "time is.",
        format_interval(batch, fit.low, fit.high), axis_number(least), 1 + batch / least,
        1 + least / batch, axis_number(largest), 1 + batch / largest, 1 + largest / batch,
        format_number(batch));
  }

  static double average(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
  }

  /// The noise scale of the gradients, where it is known: the same order of magnitude.
  static void compare_with_noise(const RunSet& set, const std::vector<size_t>& runs,
                                 ComparisonFinding* finding) {
    std::vector<double> scales;
    for (const size_t run : runs) {
      const double scale = set.runs()[run].noise_scale.value;
      if (std::isfinite(scale)) scales.push_back(scale);
    }
    if (scales.empty()) return;
    std::sort(scales.begin(), scales.end());
    finding->gate += fmt::format(
        "; the gradients' noise scale at the end was {} (median over {} of {} runs), expected to "
        "agree to an order of magnitude",
        format_number(scales[scales.size() / 2]), scales.size(), runs.size());
  }
};

}  // namespace

std::unique_ptr<ComparisonLaw> make_critical_batch() { return std::make_unique<CriticalBatch>(); }

}  // namespace tycho::analyzer
