// A parametrization is stable in width if, at a fixed step, what a layer does to its features does
// not depend on the width n: RMS(z) and RMS(z_t - z_0) are Theta(1), and so is |dW|_2
// sqrt(n_in/n_out) (Yang, Simon and Bernstein 2023). In numbers: over a ladder of widths the
// exponent d ln RMS / d ln n is 0. The refined check splits the change of a layer's features,
//   z_t - z_0 = (W_t - W_0) x_t + W_0 (x_t - x_0),
// into what the layer's own update does and what its input passes on: a layer is to blame only if
// the first part, or the norm of its update, scales with width.
//
// One number per run, the mean over the first observations of ln RMS, is fitted over ln n: steps
// of a run are not independent of each other, runs with different seeds are.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "comparisons/comparison_law.h"
#include "src/statistics/false_discoveries.h"

namespace tycho::analyzer {
namespace {

/// Later the loss itself, which falls faster in wider networks, tells widths apart.
constexpr size_t kMostSteps = 10;
/// Between the features of a readout and the output of the network: this is a multiplier.
constexpr double kMultiplierExponent = 0.2;

struct Checked {
  const char* statistic;
  bool blames;  ///< scaling with width is the layer's own doing
};

constexpr Checked kCheckedInLayers[] = {
    {"effective_update", true}, {"update_spectral_norm", true}, {"feature_change", false},
    {"feature_rms", false},     {"propagated_change", false},
};

const LawDescription& law() {
  static const LawDescription description = {
      "coordinate_check",
      "Coordinate check over width",
      Line::kSimplifyingLimits,
      "d ln RMS / d ln n = 0 for RMS(z), RMS(z_t - z_0), RMS((W_t - W_0) x_t), RMS(W_0 (x_t - "
      "x_0)), |dW|_2 sqrt(n_in/n_out) and the output's change, at equal steps; tolerance 0.1",
      "At least three widths, equal in everything else; the first 10 common observations; an "
      "output layer's features at initialization may shrink with width and are not judged",
      "If a layer's own update grows with width, divide its learning rate by the growth "
      "(maximal-update parametrization). If all exponents are 0, the best learning rate of a "
      "narrow network also suits a wide one",
      "Yang et al. 2022, arXiv:2203.03466; Yang, Simon and Bernstein 2023, arXiv:2310.17813; Haas "
      "et al. 2025, arXiv:2505.22491",
      {"feature_rms", "feature_change", "effective_update", "propagated_change",
       "update_spectral_norm", "output_change"},
      {"At widths below about 128 exponents of a correct parametrization may differ from 0, and "
       "those of a wrong one are smaller than their limit.",
       "A learning rate above that of training makes exponents easier to see.",
       "Features inherit changes from earlier layers, so only a layer's own update is blamed."}};
  return description;
}

/// The layer's output does not grow with the network, its input does: rows stay, columns vary.
bool is_readout(const RunSet& set, const std::vector<size_t>& runs, const std::string& path) {
  std::set<int64_t> rows;
  std::set<int64_t> columns;
  for (const size_t run : runs) {
    const RunDigest& digest = set.runs()[run];
    const int layer = digest.layer_id(path);
    if (layer < 0) continue;
    if (digest.model.layer(layer).type().find("Embedding") != std::string::npos) return false;
    for (const v1::Parameter& parameter : digest.model.parameter()) {
      if (static_cast<int>(parameter.layer()) != layer || parameter.shape_size() < 2) continue;
      rows.insert(parameter.shape(0));
      columns.insert(parameter.shape(1));
      break;
    }
  }
  return rows.size() == 1 && columns.size() > 1;
}

/// "effective update of layer fc1".
std::string what(const ComparisonFinding& finding) {
  std::string name = finding.evidence_statistic;
  std::replace(name.begin(), name.end(), '_', ' ');
  if (finding.scope == "output") return name;
  const std::string path = finding.scope.substr(6);
  return name + " of " + (path.empty() ? "the root" : "layer " + path);
}

class CoordinateCheck : public ComparisonLaw {
 public:
  const LawDescription& description() const override { return law(); }

  std::vector<ComparisonFinding> findings(const RunSet& set) const override {
    std::vector<ComparisonFinding> all;
    std::string shorter;
    for (const Ladder& ladder : set.ladders(Axis::kWidth)) {
      if (ladder.levels.size() < kFewestLevels) {
        shorter = ladder.describe();
        continue;
      }
      check(set, ladder, &all);
    }
    if (all.empty()) {
      all.push_back(not_applicable(
          law(), shorter.empty() ? "no sweep over width among these runs"
                                 : "an exponent needs three widths: there is only " + shorter));
    }
    return all;
  }

 private:
  static void check(const RunSet& set, const Ladder& ladder, std::vector<ComparisonFinding>* all) {
    std::vector<size_t> runs;
    for (const Level& level : ladder.levels)
      runs.insert(runs.end(), level.runs.begin(), level.runs.end());
    const std::string sweep = ladder.describe();
    std::vector<ComparisonFinding> parts;
    const auto output = [&](size_t run) {
      return run_observations(set.runs()[run], "output_change");
    };
    add(ladder_slope(set, ladder, output, kMostSteps), {"output_change", false}, "output", sweep,
        &parts);
    const double output_slope = parts.empty() ? kUnknown : parts[0].measured;
    for (const Checked& checked : kCheckedInLayers) {
      for (const std::string& path : set.common_layers(runs)) {
        const auto observe = [&](const char* statistic) {
          return [&set, &path, statistic](size_t run) {
            return layer_observations(set.runs()[run], statistic, path);
          };
        };
        const size_t before = parts.size();
        add(ladder_slope(set, ladder, observe(checked.statistic), kMostSteps), checked,
            "layer:" + path, sweep, &parts);
        if (parts.size() == before || !is_readout(set, runs, path)) continue;
        if (std::string(checked.statistic) == "feature_rms") {
          leave_unjudged(&parts.back(),
                         "the outputs of a readout may shrink with width before training, by "
                         "design");
          continue;
        }
        // Features of a readout are the output of the network, unless something that goes with the
        // width stands between them.
        const double change =
            ladder_slope(set, ladder, observe("feature_change"), kMostSteps).slope.value;
        if (std::fabs(change - output_slope) > kMultiplierExponent) {
          leave_unjudged(&parts.back(),
                         "a multiplier that depends on the width follows this readout: the "
                         "change of the network's output is judged instead");
        }
      }
    }
    std::vector<Finding*> tested;
    tested.reserve(parts.size());
    for (ComparisonFinding& part : parts) tested.push_back(&part);
    control_false_discoveries(tested);
    all->push_back(summary(parts, ladder, sweep));
    for (ComparisonFinding& part : parts) all->push_back(std::move(part));
  }

  static void leave_unjudged(ComparisonFinding* finding, const char* why) {
    set_verdict(*finding, Verdict::kNotApplicable);
    finding->p_value = kUnknown;
    finding->gate = why;
    finding->advice.clear();
  }

  static void add(LadderSlope slope, const Checked& checked, const std::string& scope,
                  const std::string& sweep, std::vector<ComparisonFinding>* parts) {
    if (slope.levels == 0) return;  // not recorded, or exactly 0 as what a constant input passes on
    ComparisonFinding finding = start_comparison(law(), scope, sweep);
    finding.evidence_statistic = checked.statistic;
    if (slope.levels < kFewestLevels || slope.steps.empty()) {
      finding.gate = slope.levels < kFewestLevels
                         ? fmt::format("measured at {} widths only", slope.levels)
                         : std::string("never measured at the same steps");
      set_verdict(finding, Verdict::kNotApplicable);
      parts->push_back(std::move(finding));
      return;
    }
    judge_ladder_slope(finding, std::move(slope));
    if (finding.verdict == Verdict::kViolated && checked.blames) {
      finding.advice = fmt::format(
          "The {} {} as width^{}: {} the learning rate of this layer by width^{}.", what(finding),
          finding.measured > 0 ? "grows" : "shrinks", exponent_text(finding.measured),
          finding.measured > 0 ? "divide" : "multiply", exponent_text(std::fabs(finding.measured)));
    } else if (finding.verdict == Verdict::kUnderpowered) {
      finding.gate += "; the interval is too wide: more seeds or more widths";
    }
    parts->push_back(std::move(finding));
  }

  static ComparisonFinding summary(const std::vector<ComparisonFinding>& parts,
                                   const Ladder& ladder, const std::string& sweep) {
    ComparisonFinding finding = start_comparison(law(), "runs", sweep);
    const ComparisonFinding* largest = nullptr;
    std::map<std::string, double> blamed;  // layer to the exponent that is furthest from 0
    size_t violated = 0;
    size_t holds = 0;
    size_t open = 0;
    // Where a layer's own doing or the output was measured, what follows from them may stay open.
    size_t essential = 0;
    size_t essential_open = 0;
    for (const ComparisonFinding& part : parts) {
      if (part.verdict == Verdict::kNotApplicable) continue;
      if (is_essential(part)) {
        ++essential;
        essential_open += part.verdict == Verdict::kUnderpowered;
      }
      violated += part.verdict == Verdict::kViolated;
      holds += part.verdict == Verdict::kHolds;
      open += part.verdict == Verdict::kUnderpowered;
      const bool more =
          largest == nullptr || rank(part) > rank(*largest) ||
          (rank(part) == rank(*largest) && std::fabs(part.measured) > std::fabs(largest->measured));
      if (more) largest = &part;
      const bool blames = is_essential(part) && part.scope != "output";
      if (part.verdict == Verdict::kViolated && blames) {
        double& worst = blamed[part.scope.substr(6)];
        if (std::fabs(part.measured) > std::fabs(worst)) worst = part.measured;
      }
    }
    if (largest == nullptr) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate =
          "none of the features' statistics was recorded at three widths (probes features and "
          "spectral_norms)";
      return finding;
    }
    finding.evidence_statistic = largest->evidence_statistic;
    finding.measured = largest->measured;
    finding.ci_low = largest->ci_low;
    finding.ci_high = largest->ci_high;
    finding.predicted = 0;
    finding.unit = "exponent";
    finding.window_begin = largest->window_begin;
    finding.window_end = largest->window_end;
    finding.points = largest->points;
    finding.by_step = largest->by_step;
    const bool decided = essential > 0 ? essential_open == 0 : open == 0;
    set_verdict(finding, violated > 0 ? Verdict::kViolated
                         : decided    ? Verdict::kHolds
                                      : Verdict::kUnderpowered);
    finding.gate = fmt::format(
        "exponents over width: {} within the tolerance, {} outside, {} not decided; furthest: {}",
        holds, violated, open, what(*largest));
    if (violated > 0) {
      finding.advice = blame(blamed);
    } else if (finding.verdict == Verdict::kHolds) {
      finding.advice = fmt::format(
          "Tune the learning rate at width {} and use it at width {}: nothing that was checked "
          "scales with width.",
          axis_number(ladder.levels.front().value), axis_number(ladder.levels.back().value));
      finding.importance = 0.5;
    } else {
      finding.advice = fmt::format(
          "{} of {} exponents are not known well enough: run each width with more seeds.", open,
          holds + open);
      finding.importance = 0.3;
    }
    return finding;
  }

  /// What to do about layers with these exponents.
  static std::string blame(const std::map<std::string, double>& blamed) {
    std::vector<std::string> names;
    std::vector<std::string> small;
    for (const auto& [path, exponent] : blamed) {
      (std::fabs(exponent) >= kExcludedExponent ? names : small)
          .push_back(fmt::format("{} (width^{})", path.empty() ? "the root" : path,
                                 exponent_text(exponent)));
    }
    if (!names.empty()) {
      return fmt::format(
          "This parametrization does not carry over to other widths, because of the weights of "
          "{}: scale their learning rates by the inverse powers, or use the maximal-update "
          "parametrization. A learning rate tuned at one width does not suit another.",
          enumerate(names));
    }
    if (!small.empty()) {
      return fmt::format(
          "The updates of {} scale with width by small powers, which may be those of networks that "
          "are not wide enough: repeat the check at larger widths before changing anything.",
          enumerate(small));
    }
    return "The features scale with width, though no layer's own update was seen to: record "
           "effective_update and update_spectral_norm to find the tensors to blame.";
  }

  static bool is_essential(const ComparisonFinding& finding) {
    return finding.evidence_statistic == "effective_update" ||
           finding.evidence_statistic == "update_spectral_norm" ||
           finding.evidence_statistic == "output_change";
  }

  static int rank(const ComparisonFinding& finding) {
    // Among equals, what a layer does itself rather than what it passes on.
    return 4 * (finding.verdict == Verdict::kViolated) +
           2 * (finding.verdict == Verdict::kUnderpowered) + is_essential(finding);
  }
};

}  // namespace

std::unique_ptr<ComparisonLaw> make_coordinate_check() {
  return std::make_unique<CoordinateCheck>();
}

}  // namespace tycho::analyzer
