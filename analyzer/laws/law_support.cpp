#include "laws/law_support.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <utility>

#include "src/number_text.h"

namespace tycho::analyzer {

std::string format_number(double value) { return number_text(value, 3); }

double steps_between(int64_t from, int64_t to) {
  return static_cast<double>(to) - static_cast<double>(from);
}

std::string format_interval(double value, double low, double high) {
  return fmt::format("{} [{}, {}]", format_number(value), format_number(low), format_number(high));
}

std::string only_observations(uint64_t count) {
  if (count == 0) return "no observation";
  return fmt::format("only {} observation{}", count, count == 1 ? "" : "s");
}

Finding start_finding(const LawDescription& law, std::string scope) {
  Finding finding;
  finding.law = law.id;
  finding.line = law.line;
  finding.scope = std::move(scope);
  finding.source = law.source;
  finding.gate = law.assumptions;
  set_verdict(finding, Verdict::kNotYet);
  return finding;
}

void set_measured(Finding& finding, const Estimate& estimate) {
  finding.measured = estimate.value;
  // What a series that moves all the time ranges over is no interval of its mean.
  const double unbounded = std::numeric_limits<double>::infinity();
  finding.ci_low = estimate.reliable ? estimate.low : -unbounded;
  finding.ci_high = estimate.reliable ? estimate.high : unbounded;
}

void judge_ratio(Finding& finding, const Estimate& ratio, double tolerance, double distance) {
  set_measured(finding, ratio);
  finding.predicted = 1;
  set_verdict(finding, judge(ratio, 1, tolerance));
  if (finding.verdict == Verdict::kUnderpowered && std::fabs(distance) <= tolerance)
    set_verdict(finding, Verdict::kHolds);
  // Off in each of eight consecutive parts: where both sides follow one deterministic course, as
  // those of the callers do, that is no chance, and the range of the parts is what can be said.
  const bool off = ratio.high < 1 / (1 + tolerance) || ratio.low > 1 + tolerance;
  if (finding.verdict == Verdict::kUnderpowered && !ratio.reliable && off) {
    set_verdict(finding, Verdict::kViolated);
    finding.ci_low = ratio.low;
    finding.ci_high = ratio.high;
  }
  finding.p_value = band_p_value(ratio, 1 / (1 + tolerance), 1 + tolerance);
}

void set_not_applicable(Finding& finding, std::string gate) {
  set_verdict(finding, Verdict::kNotApplicable);
  finding.gate = std::move(gate);
  finding.advice.clear();
  finding.measured = finding.predicted = finding.ci_low = finding.ci_high = kUnknown;
  finding.p_value = finding.evidence_level = kUnknown;
}

void set_verdict(Finding& finding, Verdict verdict) {
  finding.verdict = verdict;
  finding.importance = importance(verdict, finding.scope == "run");
}

}  // namespace tycho::analyzer
