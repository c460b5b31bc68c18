#include "comparisons/comparison_law.h"

#include <fmt/format.h>

#include "laws/law_support.h"

namespace tycho::analyzer {

std::vector<std::unique_ptr<ComparisonLaw>> make_comparison_laws() {
  std::vector<std::unique_ptr<ComparisonLaw>> laws;
  laws.push_back(make_coordinate_check());
  laws.push_back(make_critical_batch());
  laws.push_back(make_batch_transfer());
  laws.push_back(make_curve_collapse());
  laws.push_back(make_depth_scaling());
  laws.push_back(make_sharpness_width());
  laws.push_back(make_schedule_transfer());
  return laws;
}

ComparisonFinding start_comparison(const LawDescription& law, std::string scope,
                                   std::string sweep) {
  ComparisonFinding finding;
  static_cast<Finding&>(finding) = start_finding(law, std::move(scope));
  finding.sweep = std::move(sweep);
  set_verdict(finding, Verdict::kNotYet);
  return finding;
}

void set_verdict(ComparisonFinding& finding, Verdict verdict) {
  finding.verdict = verdict;
  finding.importance = importance(verdict, finding.scope == "runs");
}

ComparisonFinding not_applicable(const LawDescription& law, std::string why, std::string sweep) {
  ComparisonFinding finding = start_comparison(law, "runs", std::move(sweep));
  set_verdict(finding, Verdict::kNotApplicable);
  finding.gate = std::move(why);
  return finding;
}

std::string axis_number(double value) { return fmt::format("{:.6g}", value); }

std::string exponent_text(double value) {
  const std::string text = fmt::format("{:.2f}", value);
  return text == "-0.00" ? "0.00" : text;
}

void judge_ladder_slope(ComparisonFinding& finding, LadderSlope slope) {
  set_measured(finding, slope.slope);
  finding.predicted = 0;
  finding.unit = "exponent";
  finding.p_value = band_p_value(slope.slope, -kExponentTolerance, kExponentTolerance);
  if (!slope.steps.empty()) {
    finding.window_begin = static_cast<int64_t>(slope.steps.front().step);
    finding.window_end = static_cast<int64_t>(slope.steps.back().step);
  }
  set_verdict(finding, judge_exponent(slope.slope, kExponentTolerance, kExcludedExponent));
  finding.by_step = std::move(slope.steps);
  finding.points = std::move(slope.points);
}

}  // namespace tycho::analyzer
