#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/compare/run_set.h"
#include "src/compare/slopes.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// A finding of a law over several runs. Its scope is "runs" where it speaks of a whole sweep,
/// "layer:<path>", or "output", that of the network.
struct ComparisonFinding : Finding {
  std::string sweep;                         ///< the runs it speaks of, in words; empty: all
  std::vector<LadderSlope::AtStep> by_step;  ///< exponents over the axis, where these were fitted
  /// What was fitted, for a picture: axis and value, by run or level.
  std::vector<std::pair<double, double>> points;
  std::vector<std::pair<double, double>> curve;  ///< the fit or the prediction, same axes
};

/// A prediction over several runs. Looks at the digests of a set of runs, once.
class ComparisonLaw {
 public:
  virtual ~ComparisonLaw() = default;
  virtual const LawDescription& description() const = 0;
  /// What is wrong with a sweep first; one NOT_APPLICABLE where there is no sweep for it.
  virtual std::vector<ComparisonFinding> findings(const RunSet& set) const = 0;
};

// One law per file; the comment in its source derives the prediction.
std::unique_ptr<ComparisonLaw> make_coordinate_check();
std::unique_ptr<ComparisonLaw> make_critical_batch();
std::unique_ptr<ComparisonLaw> make_batch_transfer();
std::unique_ptr<ComparisonLaw> make_curve_collapse();
std::unique_ptr<ComparisonLaw> make_depth_scaling();
std::unique_ptr<ComparisonLaw> make_sharpness_width();
std::unique_ptr<ComparisonLaw> make_schedule_transfer();

/// All of them, freshly made, in the order in which they are shown.
std::vector<std::unique_ptr<ComparisonLaw>> make_comparison_laws();

/// A finding with the fields that do not depend on data.
ComparisonFinding start_comparison(const LawDescription& law, std::string scope,
                                   std::string sweep = "");
/// Sets the verdict, with the importance that goes with it.
void set_verdict(ComparisonFinding& finding, Verdict verdict);
/// NOT_APPLICABLE at "runs", for the reason given.
ComparisonFinding not_applicable(const LawDescription& law, std::string why,
                                 std::string sweep = "");

/// A value of an axis, not rounded: "1024".
std::string axis_number(double value);
/// "0.97": an exponent is known no better.
std::string exponent_text(double value);

/// Exponents over an axis that a law predicts to be 0 to within this,
inline constexpr double kExponentTolerance = 0.1;
/// with intervals that must not reach that.
inline constexpr double kExcludedExponent = 0.25;
/// Fewest values of an axis over which an exponent means something.
inline constexpr size_t kFewestLevels = 3;

/// Fills in measured, predicted, interval, p-value, pictures and verdict of an exponent predicted
/// to be 0.
void judge_ladder_slope(ComparisonFinding& finding, LadderSlope slope);

}  // namespace tycho::analyzer
