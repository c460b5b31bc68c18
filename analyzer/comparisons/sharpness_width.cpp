// In the maximal-update parametrization the curves of sharpness against steps coincide over widths,
// in others they do not (Noci et al. 2024): the exponent of the sharpness over width is 0 at equal
// steps. The sharpness that counts is the one that the optimizer feels, in units of its edge of
// stability: learning rates of layers that go with the width, which is how the parametrization is
// often made, are in it.
#include <fmt/format.h>

#include <cmath>

#include "comparisons/comparison_law.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kMostSteps = 1000;  // more bins than that no run has

const LawDescription& law() {
  static const LawDescription description = {
      "sharpness_width",
      "Sharpness independent of width",
      Line::kSimplifyingLimits,
      "d ln lambda_max / d ln n = 0 at equal steps, lambda_max the preconditioned sharpness over "
      "its edge of stability (else the sharpness)",
      "At least three widths in the maximal-update parametrization, equal in everything else; "
      "the same learning rate of the first parameter group",
      "If it holds, narrow and wide networks have the same largest stable learning rate. If the "
      "sharpness grows with width, a wide network needs a smaller learning rate",
      "Noci et al. 2024, arXiv:2402.17457",
      {"preconditioned_sharpness", "stability_threshold", "sharpness"},
      {"Sharpness of a small probe batch is noisy: several seeds are needed.",
       "Near the edge of stability every width is at 1, whatever the parametrization."}};
  return description;
}

/// Ratio to the edge bin by bin where both were measured, else the sharpness.
Observations observe(const RunDigest& run) {
  const auto* sharpness = run.series("preconditioned_sharpness");
  const auto* threshold = run.series("stability_threshold");
  if (sharpness == nullptr || threshold == nullptr) return run_observations(run, "sharpness");
  Observations result;
  for (const RunBin& bin : *sharpness) {
    if (bin.count == 0) continue;
    for (const RunBin& edge : *threshold) {
      if (edge.bin == bin.bin && edge.count > 0 && edge.mean > 0)
        result.emplace_back(bin.position.step, bin.mean / edge.mean);
    }
  }
  return result;
}

class SharpnessWidth : public ComparisonLaw {
 public:
  const LawDescription& description() const override { return law(); }

  std::vector<ComparisonFinding> findings(const RunSet& set) const override {
    std::vector<ComparisonFinding> all;
    for (const Ladder& ladder : set.ladders(Axis::kWidth)) {
      if (ladder.levels.size() < kFewestLevels) continue;
      LadderSlope slope = ladder_slope(
          set, ladder, [&](size_t run) { return observe(set.runs()[run]); }, kMostSteps);
      if (slope.levels < kFewestLevels || slope.steps.empty()) {
        all.push_back(not_applicable(law(), "the sharpness was not measured at three widths",
                                     ladder.describe()));
        continue;
      }
      ComparisonFinding finding = start_comparison(law(), "runs", ladder.describe());
      finding.evidence_statistic = "preconditioned_sharpness";
      const size_t steps = slope.steps.size();
      judge_ladder_slope(finding, std::move(slope));
      finding.gate += fmt::format("; mean over {} steps at which all were measured", steps);
      if (finding.verdict == Verdict::kViolated) {
        finding.advice = fmt::format(
            "The sharpness scales as width^{}, and the largest stable learning rate as "
            "width^{}. Do not carry a learning rate over between widths of this parametrization.",
            exponent_text(finding.measured), exponent_text(-finding.measured));
      } else if (finding.verdict == Verdict::kHolds) {
        finding.advice =
            "The largest stable learning rate does not depend on the width of these networks.";
      }
      all.push_back(std::move(finding));
    }
    if (all.empty())
      all.push_back(not_applicable(law(), "no sweep over three widths among these runs"));
    return all;
  }
};

}  // namespace

std::unique_ptr<ComparisonLaw> make_sharpness_width() { return std::make_unique<SharpnessWidth>(); }

}  // namespace tycho::analyzer
