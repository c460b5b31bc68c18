// Loss curves of networks of different size, each trained to its own horizon t*, collapse onto one
// when both are normalised by their end: l(x, p) = (L(x t*, p) - L0) / (L(t*, p) - L0). For L = L0
// + t^-mu + p^-nu with t* proportional to p^(nu/mu), l = (r x^-mu + 1)/(r + 1) with r = nu/mu does
// not depend on p. How well they collapse is the spread over sizes and seeds, Delta(x) = std l /
// mean l, in units of the noise floor sigma(x) = std over seeds of (L - L0) over its mean; Delta <
// sigma is called a supercollapse (Qiu et al. 2025).
//
// L0 is not known: it is fitted, as the one number between 0 and the lowest final loss that makes
// the ratio smallest, which costs Delta a degree of freedom. The denominator of l is the run's own
// final loss, whose noise adds to Delta: Delta is about sigma to 1.4 sigma for a collapse.
#include <fmt/format.h>

#include <algorithm>
#include <boost/math/distributions/fisher_f.hpp>
#include <cmath>
#include <limits>

#include "comparisons/comparison_law.h"
#include "laws/law_support.h"
#include "src/compare/curves.h"

namespace tycho::analyzer {
namespace {

constexpr int kPoints = 17;  // of x, from 0.1 to 0.9
constexpr double kFrom = 0.1;
constexpr double kTo = 0.9;
constexpr double kTolerance = 2;  // Delta / sigma
constexpr double kExcluded = 5;   // the interval must not reach that
constexpr double kGrows = 0.1;    // exponent of the horizon over the number of weights

const LawDescription& law() {
  static const LawDescription description = {
      "curve_collapse",
      "Collapse of loss curves over width",
      Line::kUniversalPhenomena,
      "l(x) = (L(x t*) - L0)/(L(t*) - L0) is the same for all widths: Delta(x) = std l / mean l is "
      "at most twice the noise floor sigma(x) between seeds, x from 0.1 to 0.9; Delta < sigma: "
      "supercollapse",
      "At least three widths with two seeds each, each trained to its own compute-optimal "
      "horizon t* (which grows with width) on a learning-rate schedule that ends there",
      "A run whose normalised curve leaves the common one is mistuned or broken, long before "
      "its loss shows it. If curves collapse, a small network's curve forecasts a large one's",
      "Qiu et al. 2025, arXiv:2507.02119",
      {"loss", "probe_loss"},
      {"L0 is a fit: the one offset that makes the curves coincide best.",
       "Horizons that are not compute-optimal, or a parametrization whose best learning rate moves "
       "with width, break the collapse."}};
  return description;
}

struct Run {
  size_t level;
  double horizon;
  double weights;
  std::vector<double> loss;  // at the points of x
  double last;
};

/// Mean over x of ln(Delta / sigma), and both as root mean squares over x.
struct Spread {
  double objective = std::numeric_limits<double>::infinity();
  double delta = 0;
  double sigma = 0;
};

Spread spread(const std::vector<Run>& runs, size_t levels, double offset) {
  Spread result;
  double objective = 0;
  for (size_t i = 0; i < kPoints; ++i) {
    double mean = 0;
    for (const Run& run : runs) mean += (run.loss[i] - offset) / (run.last - offset);
    mean /= static_cast<double>(runs.size());
    double square = 0;
    for (const Run& run : runs) {
      const double error = (run.loss[i] - offset) / (run.last - offset) - mean;
      square += error * error;
    }
    const double delta = std::sqrt(square / (static_cast<double>(runs.size()) - 1)) / mean;
    // The scatter between seeds of each width, relative to its own mean, pooled.
    double relative = 0;
    double freedom = 0;
    for (size_t level = 0; level < levels; ++level) {
      double centre = 0;
      double count = 0;
      for (const Run& run : runs) {
        if (run.level != level) continue;
        centre += run.loss[i] - offset;
        ++count;
      }
      if (count < 1) continue;
      centre /= count;
      for (const Run& run : runs) {
        if (run.level != level) continue;
        const double error = (run.loss[i] - offset) / centre - 1;
        relative += error * error;
      }
      freedom += count - 1;
    }
    const double sigma = std::sqrt(relative / freedom);
    objective += std::log(delta / sigma) / kPoints;
    result.delta += delta * delta / kPoints;
    result.sigma += sigma * sigma / kPoints;
  }
  result.objective = objective;
  result.delta = std::sqrt(result.delta);
  result.sigma = std::sqrt(result.sigma);
  return result;
}

class CurveCollapse : public ComparisonLaw {
 public:
  const LawDescription& description() const override { return law(); }

  std::vector<ComparisonFinding> findings(const RunSet& set) const override {
    std::vector<ComparisonFinding> all;
    for (const Ladder& ladder : set.ladders(Axis::kWidth)) {
      if (ladder.levels.size() >= kFewestLevels) all.push_back(judge_sweep(set, ladder));
    }
    if (all.empty())
      all.push_back(not_applicable(law(), "no sweep over three widths among these runs"));
    return all;
  }

 private:
  static ComparisonFinding judge_sweep(const RunSet& set, const Ladder& ladder) {
    const std::string sweep = ladder.describe();
    std::vector<size_t> members;
    for (const Level& level : ladder.levels)
      members.insert(members.end(), level.runs.begin(), level.runs.end());
    const std::string statistic = loss_statistic(set, members);
    std::vector<Run> runs;
    double freedom = 0;
    for (size_t l = 0; l < ladder.levels.size(); ++l) {
      double count = 0;
      for (const size_t r : ladder.levels[l].runs) {
        Run run;
        if (!take(set.runs()[r], statistic, &run)) continue;
        run.level = l;
        runs.push_back(std::move(run));
        ++count;
      }
      freedom += std::max(0.0, count - 1);
    }
    ComparisonFinding finding = start_comparison(law(), "runs", sweep);
    finding.evidence_statistic = statistic;
    std::vector<std::pair<double, double>> horizons;
    horizons.reserve(runs.size());
    for (const Run& run : runs) horizons.emplace_back(run.weights, run.horizon);
    const Estimate grows = log_log_slope(horizons);
    if (!(grows.value > kGrows)) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate =
          "all widths were trained for about the same number of steps: curves collapse where each "
          "is trained to its own compute-optimal horizon";
      return finding;
    }
    if (freedom < 2 || runs.size() < 5) {
      set_verdict(finding, Verdict::kUnderpowered);
      finding.gate += "; the noise between seeds is not known: two seeds are needed";
      return finding;
    }
    double lowest = std::numeric_limits<double>::infinity();
    for (const Run& run : runs) lowest = std::min(lowest, run.last);
    if (!(lowest > 0)) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate = "a final loss is not positive: there is no offset to normalise by";
      return finding;
    }
    double offset = 0;
    Spread best;
    constexpr int kGrid = 400;
    for (int i = 0; i < kGrid; ++i) {
      const double at = lowest * i / kGrid;
      const Spread here = spread(runs, ladder.levels.size(), at);
      if (!(here.objective < best.objective)) continue;
      best = here;
      offset = at;
    }
    if (!(best.sigma > 0) || !std::isfinite(best.delta)) {
      set_verdict(finding, Verdict::kUnderpowered);
      finding.gate += "; seeds do not differ at all, so there is no noise to compare with";
      return finding;
    }
    judge_ratio(best, offset, static_cast<double>(runs.size()) - 2, freedom, &finding);
    return finding;
  }

  static bool take(const RunDigest& digest, const std::string& statistic, Run* run) {
    const Curve curve = smooth_curve(digest, statistic);
    if (curve.empty() || curve.diverged) return false;
    run->horizon = curve.last(Alignment::kStep) + 1;
    run->last = curve.points.back().value;
    run->weights = 0;
    for (const v1::Parameter& parameter : digest.model.parameter())
      run->weights += static_cast<double>(parameter.element_count());
    for (int i = 0; i < kPoints; ++i) {
      const double x = kFrom + (kTo - kFrom) * i / (kPoints - 1);
      run->loss.push_back(curve.at(x * run->horizon - 1, Alignment::kStep));
    }
    return std::all_of(run->loss.begin(), run->loss.end(),
                       [](double value) { return std::isfinite(value); }) &&
           run->weights > 0;
  }

  static void judge_ratio(const Spread& best, double offset, double freedom_delta,
                          double freedom_sigma, ComparisonFinding* finding) {
    const double ratio = best.delta / best.sigma;
    const boost::math::fisher_f distribution(freedom_delta, freedom_sigma);
    finding->measured = ratio;
    finding->predicted = 1;
    finding->unit = "noise floors";
    finding->ci_low = ratio / std::sqrt(boost::math::quantile(distribution, 0.975));
    finding->ci_high = ratio / std::sqrt(boost::math::quantile(distribution, 0.025));
    finding->gate =
        fmt::format("spread of the normalised curves {:.3g}, noise floor {:.3g}; L0 = {} is a fit",
                    best.delta, best.sigma, format_number(offset));
    if (finding->ci_low > kTolerance) {
      set_verdict(*finding, Verdict::kViolated);
      finding->advice = fmt::format(
          "Normalised curves differ by {} times the noise between seeds: some width is not "
          "trained like the others. Check its learning rate (does it carry over?) and its "
          "horizon.",
          format_number(ratio));
    } else if (ratio <= kTolerance && finding->ci_high < kExcluded) {
      set_verdict(*finding, Verdict::kHolds);
      finding->gate += ratio < 1 ? "; a supercollapse" : "";
      finding->advice =
          "Curves collapse: forecast a larger network from a smaller one's normalised curve, "
          "and stop a run that leaves it.";
      finding->importance = 0.45;
    } else {
      set_verdict(*finding, Verdict::kUnderpowered);
    }
  }
};

}  // namespace

std::unique_ptr<ComparisonLaw> make_curve_collapse() { return std::make_unique<CurveCollapse>(); }

}  // namespace tycho::analyzer
