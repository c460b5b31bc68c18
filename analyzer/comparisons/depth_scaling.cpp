// A residual network h <- h + L^-a f(h) of depth L learns features in its limit if what its
// branches add up to does not depend on L: with a = 1/2 branches add up as a random walk, with a =
// 1 coherently, and the change of a branch is Theta(1/L) of the whole (Yang et al. 2023, Bordelon
// et al. 2023, Dey et al. 2025). A trace shows outputs of layers, not the multipliers behind them,
// so that what can be tested without knowing a is the total: the change of the output, and of the
// features of layers outside of the stack, has exponent 0 over depth. How the layers of the stack
// go is a fit that tells which of the two scalings this is.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "comparisons/comparison_law.h"
#include "src/statistics/false_discoveries.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kMostSteps = 10;

const LawDescription& law() {
  static const LawDescription description = {
      "depth_scaling",
      "Feature change over depth",
      Line::kSimplifyingLimits,
      "d ln RMS(change) / d ln L = 0 for the output and the layers outside of the stack of L "
      "blocks; the blocks' own exponent s is a fit: with a branch multiplier L^-a their sum is "
      "Theta(1) where s = a - 1 (coherent)",
      "At least three depths, equal in everything else; a residual stack; the first 10 common "
      "observations",
      "If the change of the output grows with depth, put a multiplier L^-1/2 or L^-1 on the "
      "residual branches and scale their learning rates with it; a learning rate tuned on a "
      "shallow network then suits a deep one",
      "Yang et al. 2023, arXiv:2310.02244; Bordelon et al. 2023, arXiv:2309.16620; Dey et al. "
      "2025, arXiv:2505.01618",
      {"output_change", "feature_change", "effective_update"},
      {"Networks without residual connections have no such limit.",
       "The exponent of the blocks is a fit: the multiplier is not in the trace."}};
  return description;
}

bool numbered(const std::string& path) { return path_pattern(path).find('#') != std::string::npos; }

/// Geometric mean over the numbered layers, step by step where all were measured.
Observations over_blocks(const RunDigest& run, const std::string& statistic) {
  Observations result;
  const auto* bins = run.layers(statistic);
  if (bins == nullptr) return result;
  for (const LayerBin& bin : *bins) {
    double sum = 0;
    int count = 0;
    for (int i = 0; i < run.model.layer_size(); ++i) {
      if (!numbered(run.model.layer(i).path()) || static_cast<size_t>(i) >= bin.cell.size())
        continue;
      const double value = bin.cell[static_cast<size_t>(i)].first;
      if (!(value > 0) || !std::isfinite(value)) continue;
      sum += std::log(value);
      ++count;
    }
    if (count > 0) result.emplace_back(static_cast<double>(bin.first_step), std::exp(sum / count));
  }
  return result;
}

class DepthScaling : public ComparisonLaw {
 public:
  const LawDescription& description() const override { return law(); }

  std::vector<ComparisonFinding> findings(const RunSet& set) const override {
    std::vector<ComparisonFinding> all;
    for (const Ladder& ladder : set.ladders(Axis::kDepth)) {
      if (ladder.levels.size() >= kFewestLevels) judge_sweep(set, ladder, &all);
    }
    if (all.empty())
      all.push_back(not_applicable(law(), "no sweep over three depths among these runs"));
    return all;
  }

 private:
  static void judge_sweep(const RunSet& set, const Ladder& ladder,
                          std::vector<ComparisonFinding>* all) {
    const std::string sweep = ladder.describe();
    std::vector<size_t> runs;
    for (const Level& level : ladder.levels)
      runs.insert(runs.end(), level.runs.begin(), level.runs.end());
    std::vector<ComparisonFinding> parts;
    const auto add = [&](LadderSlope slope, const char* statistic, const std::string& scope) {
      if (slope.levels < kFewestLevels || slope.steps.empty()) return;
      ComparisonFinding finding = start_comparison(law(), scope, sweep);
      finding.evidence_statistic = statistic;
      judge_ladder_slope(finding, std::move(slope));
      parts.push_back(std::move(finding));
    };
    for (const std::string& path : set.common_layers(runs)) {
      if (numbered(path)) continue;
      const auto observe = [&](size_t run) {
        return layer_observations(set.runs()[run], "feature_change", path);
      };
      add(ladder_slope(set, ladder, observe, kMostSteps), "feature_change", "layer:" + path);
    }
    std::vector<Finding*> tested;
    tested.reserve(parts.size());
    for (ComparisonFinding& part : parts) tested.push_back(&part);
    control_false_discoveries(tested);
    const LadderSlope output = ladder_slope(
        set, ladder, [&](size_t run) { return run_observations(set.runs()[run], "output_change"); },
        kMostSteps);
    ComparisonFinding whole = start_comparison(law(), "runs", sweep);
    whole.evidence_statistic = "output_change";
    if (output.levels >= kFewestLevels && !output.steps.empty()) {
      judge_ladder_slope(whole, output);
    } else if (!parts.empty()) {
      // The layer that is furthest off stands for the output.
      const auto furthest = std::max_element(
          parts.begin(), parts.end(), [](const ComparisonFinding& a, const ComparisonFinding& b) {
            return std::fabs(a.measured) < std::fabs(b.measured);
          });
      whole = *furthest;
      whole.scope = "runs";
      set_verdict(whole, whole.verdict);
      whole.gate += "; the output's change was not recorded: this is " + furthest->scope;
    } else {
      all->push_back(not_applicable(
          law(), "neither output_change nor feature_change was recorded at three depths", sweep));
      return;
    }
    advise(set, ladder, &whole);
    all->push_back(std::move(whole));
    for (ComparisonFinding& part : parts) all->push_back(std::move(part));
  }

  static void advise(const RunSet& set, const Ladder& ladder, ComparisonFinding* whole) {
    const LadderSlope blocks = ladder_slope(
        set, ladder, [&](size_t run) { return over_blocks(set.runs()[run], "effective_update"); },
        kMostSteps);
    std::string fit;
    if (blocks.slope.reliable) {
      fit = fmt::format(
          "; a fit: the layers of the stack change as depth^{}, so that their sum is Theta(1) with "
          "a branch multiplier depth^{}",
          fmt::format("{} [{}, {}]", exponent_text(blocks.slope.value),
                      exponent_text(blocks.slope.low), exponent_text(blocks.slope.high)),
          exponent_text(-1 - blocks.slope.value));
    }
    whole->gate += fit;
    if (whole->verdict == Verdict::kViolated) {
      whole->advice = fmt::format(
          "What the network learns in a step scales as depth^{}: a learning rate tuned at one "
          "depth does not suit another. Put a multiplier on the residual branches that falls "
          "with depth (L^-1/2 or L^-1), and scale their learning rates with it.",
          exponent_text(whole->measured));
    } else if (whole->verdict == Verdict::kHolds) {
      whole->advice = fmt::format(
          "Tune the learning rate at depth {} and use it at depth {}: the effect of a step on "
          "the output does not depend on depth.",
          axis_number(ladder.levels.front().value), axis_number(ladder.levels.back().value));
      whole->importance = 0.5;
    }
  }
};

}  // namespace

std::unique_ptr<ComparisonLaw> make_depth_scaling() { return std::make_unique<DepthScaling>(); }

}  // namespace tycho::analyzer
