#include "src/compare/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "src/compare/curves.h"

namespace tycho::analyzer {

const LawDescription* Comparison::law(const std::string& id) const {
  const auto found = std::find_if(laws.begin(), laws.end(),
                                  [&](const LawDescription& law) { return law.id == id; });
  return found == laws.end() ? nullptr : &*found;
}

bool Comparison::has_loss() const {
  if (!set.left_out().empty()) return true;
  return std::any_of(set.runs().begin(), set.runs().end(),
                     [](const RunDigest& run) { return !run.losses.empty(); });
}

Comparison compare(std::vector<RunDigest> runs, std::vector<LeftOut> left_out,
                   const ComparisonOptions& options) {
  Comparison comparison{
      RunSet(std::move(runs), std::move(left_out), options.ignored), options, {}, {}};
  for (const auto& law : make_comparison_laws()) {
    comparison.laws.push_back(law->description());
    for (ComparisonFinding& finding : law->findings(comparison.set)) {
      comparison.findings.push_back(std::move(finding));
    }
  }
  std::stable_sort(comparison.findings.begin(), comparison.findings.end(),
                   [](const ComparisonFinding& a, const ComparisonFinding& b) {
                     return a.importance > b.importance;
                   });
  return comparison;
}

Result<Comparison> read_comparison(
    const std::vector<std::string>& paths, const ComparisonOptions& options,
    const std::function<void(size_t run, uint64_t frames)>& progress) {
  std::vector<RunDigest> runs;
  std::vector<LeftOut> left_out;
  Status last;
  for (size_t i = 0; i < paths.size(); ++i) {
    auto digest = digest_run(paths[i], progress ? [&, i](uint64_t frames) { progress(i, frames); }
                                                : std::function<void(uint64_t)>());
    if (!digest.ok()) {
      last = digest.status();
      left_out.push_back({paths[i], digest.status().message()});
      continue;
    }
    runs.push_back(std::move(digest).value());
  }
  if (runs.empty()) {
    return Status(last.ok() ? Status::Code::kInvalidArgument : last.code(),
                  "none of the runs can be read; last error: " + last.message());
  }
  return compare(std::move(runs), std::move(left_out), options);
}

std::vector<const ComparisonFinding*> what_to_do(const Comparison& comparison) {
  constexpr size_t kMost = 8;
  constexpr double kWorthIt = 0.25;
  std::vector<const ComparisonFinding*> chosen;
  for (const ComparisonFinding& finding : comparison.findings) {
    if (finding.advice.empty() || finding.importance < kWorthIt) continue;
    // The sweep speaks for its layers, and two sweeps for all that come out alike.
    constexpr std::ptrdiff_t kMostAlike = 2;
    const bool said =
        std::any_of(chosen.begin(), chosen.end(), [&](const ComparisonFinding* other) {
          return other->law == finding.law &&
                 (other->sweep == finding.sweep || other->advice == finding.advice);
        });
    const auto alike =
        std::count_if(chosen.begin(), chosen.end(), [&](const ComparisonFinding* other) {
          return other->law == finding.law && other->verdict == finding.verdict;
        });
    if (said || alike >= kMostAlike) continue;
    chosen.push_back(&finding);
    if (chosen.size() == kMost) break;
  }
  return chosen;
}

std::string where(const Comparison& comparison, const ComparisonFinding& finding) {
  std::string out = "over " + (finding.sweep.empty() ? std::string("all runs") : finding.sweep);
  size_t more = 0;
  for (const ComparisonFinding& other : comparison.findings) {
    const bool same = other.law == finding.law && other.scope == finding.scope &&
                      other.advice == finding.advice && other.sweep != finding.sweep;
    if (same && ++more <= 2) out += "; the same over " + other.sweep;
  }
  if (more > 2) out += fmt::format("; and {} more", more - 2);
  return out;
}

std::string nothing_to_do(const Comparison& comparison) {
  if (comparison.set.runs().empty()) return "No run could be compared.";
  if (comparison.set.runs().size() == 1) {
    return "Only one run could be used: there is nothing to compare it with.";
  }
  const bool applies = std::any_of(
      comparison.findings.begin(), comparison.findings.end(),
      [](const ComparisonFinding& finding) { return finding.verdict != Verdict::kNotApplicable; });
  if (sweeps(comparison.set).empty() && !applies) {
    return "These runs form no sweep over width, depth, batch size or learning rate, so no law "
           "over several runs applies. The differences are listed below.";
  }
  return "No law over these runs calls for a change.";
}

Verdict summary_verdict(const Comparison& comparison, const LawDescription& law) {
  // By what it says, not by importance: a violation first, silence last.
  const auto rank = [](Verdict verdict) {
    switch (verdict) {
      case Verdict::kViolated:
        return 4;
      case Verdict::kUnderpowered:
        return 2;
      case Verdict::kHolds:
        return 3;
      case Verdict::kNotYet:
      case Verdict::kNotMeasured:
        return 1;
      case Verdict::kNotApplicable:
        return 0;
    }
    return 0;
  };
  Verdict best = Verdict::kNotApplicable;
  for (const ComparisonFinding& finding : comparison.findings) {
    if (finding.law != law.id || finding.scope != "runs") continue;
    if (rank(finding.verdict) > rank(best)) best = finding.verdict;
  }
  return best;
}

Outcomes outcomes(const Comparison& comparison) {
  Outcomes result;
  const auto& runs = comparison.set.runs();
  std::vector<size_t> all(runs.size());
  for (size_t r = 0; r < runs.size(); ++r) all[r] = r;
  result.statistic = loss_statistic(comparison.set, all);
  std::vector<Curve> curves;
  std::vector<Curve> known;
  for (const RunDigest& run : runs) {
    curves.push_back(smooth_curve(run, result.statistic));
    if (!curves.back().empty()) known.push_back(curves.back());
  }
  const Alignment by = comparison.options.by;
  result.common_end = common_end(known, by);
  for (size_t r = 0; r < runs.size(); ++r) {
    const Curve& curve = curves[r];
    Outcome outcome;
    outcome.end = runs[r].end.by(by);
    if (!curve.empty()) outcome.loss = curve.points.back().value;
    if (std::isfinite(result.common_end)) outcome.common_loss = curve.at(result.common_end, by);
    result.run.push_back(outcome);
  }
  return result;
}

std::vector<Ladder> sweeps(const RunSet& set) {
  std::vector<Ladder> result;
  std::set<std::set<std::vector<size_t>>> known;
  for (const Axis axis : {Axis::kWidth, Axis::kDepth, Axis::kBatchSize, Axis::kLearningRate}) {
    for (Ladder& ladder : set.ladders(axis)) {
      // A learning rate that goes with the batch size is one sweep, not two.
      std::set<std::vector<size_t>> levels;
      for (const Level& level : ladder.levels) levels.insert(level.runs);
      if (known.insert(std::move(levels)).second) result.push_back(std::move(ladder));
    }
  }
  return result;
}

}  // namespace tycho::analyzer
