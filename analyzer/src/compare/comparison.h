#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "comparisons/comparison_law.h"
#include "src/compare/run_set.h"

namespace tycho::analyzer {

struct ComparisonOptions {
  Alignment by = Alignment::kStep;
  /// Settings that tell no runs apart, by the names that the comparison gives them.
  std::set<std::string> ignored;
};

/// Everything that `tycho compare` shows. Its size depends on the numbers of runs, layers and
/// statistics, not on the length of the runs.
struct Comparison {
  RunSet set;
  ComparisonOptions options;
  std::vector<LawDescription> laws;
  std::vector<ComparisonFinding> findings;  ///< by importance

  const LawDescription* law(const std::string& id) const;
  /// Was something that was recorded, or a whole run, not to be had?
  bool has_loss() const;
};

/// Judges digests.
Comparison compare(std::vector<RunDigest> runs, std::vector<LeftOut> left_out,
                   const ComparisonOptions& options);

/// Reads the runs one after the other, each once. Runs that cannot be read are left out and said;
/// fails only where none can be.
Result<Comparison> read_comparison(
    const std::vector<std::string>& paths, const ComparisonOptions& options,
    const std::function<void(size_t run, uint64_t frames)>& progress);

/// What a reader should see first: findings with advice, at most two of a law that come out alike.
std::vector<const ComparisonFinding*> what_to_do(const Comparison& comparison);
/// The sweeps for which a finding's law gives the same advice: "over A; the same over B".
std::string where(const Comparison& comparison, const ComparisonFinding& finding);
/// Where there is nothing to act upon: why.
std::string nothing_to_do(const Comparison& comparison);
/// One verdict for a law over all sweeps: violated if any sweep is, else the one that says most.
Verdict summary_verdict(const Comparison& comparison, const LawDescription& law);

/// How far a run came, and its loss where it ended and where all runs have come.
struct Outcome {
  double end = kUnknown;  ///< position, by the comparison's alignment
  double loss = kUnknown;
  double common_loss = kUnknown;  ///< at common_end
};
struct Outcomes {
  std::string statistic;         ///< the loss that is compared
  double common_end = kUnknown;  ///< the largest position that all runs reach
  std::vector<Outcome> run;
};
Outcomes outcomes(const Comparison& comparison);

/// All sweeps along all axes.
std::vector<Ladder> sweeps(const RunSet& set);

std::string text_comparison(const Comparison& comparison, bool colour, int width);
std::string json_comparison(const Comparison& comparison);
/// One file that needs no network.
std::string html_comparison(const Comparison& comparison);

}  // namespace tycho::analyzer
