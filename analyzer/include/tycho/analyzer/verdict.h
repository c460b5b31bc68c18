#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace tycho::analyzer {

/// NotApplicable: theory makes no prediction for this model, optimizer or regime. NotMeasured: it
/// does, but its statistics were not recorded. NotYet: they are recorded, but more steps are
/// needed.
enum class Verdict { kHolds, kViolated, kNotApplicable, kUnderpowered, kNotYet, kNotMeasured };
/// HOLDS, VIOLATED, NOT_APPLICABLE, UNDERPOWERED, NOT_YET, NOT_MEASURED.
const char* to_string(Verdict verdict);

/// The five lines of learning mechanics (Simon et al. 2026).
enum class Line {
  kSolvableSettings,
  kSimplifyingLimits,
  kEmpiricalLaws,
  kHyperparameters,
  kUniversalPhenomena
};
const char* to_string(Line line);

/// What a law claims about `measured`: that it equals `predicted`, or is at most or at least that.
enum class Relation { kEqual, kAtMost, kAtLeast };
/// "equal", "at most", "at least".
const char* to_string(Relation relation);

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

/// One law at one scope.
struct Finding {
  std::string law;  ///< stable id, lower_snake_case: gradient_noise_scale
  Line line = Line::kEmpiricalLaws;
  std::string scope;  ///< "run", "layer:<path>", "param:<name>", "index:<position>"
  Verdict verdict = Verdict::kNotYet;
  double measured = kUnknown;
  double predicted = kUnknown;
  Relation relation = Relation::kEqual;  ///< of `measured` to `predicted`
  double ci_low = kUnknown;              ///< of `measured`
  double ci_high = kUnknown;
  double confidence = 0.95;
  std::string unit;
  int64_t window_begin = -1;  ///< steps used, inclusive
  int64_t window_end = -1;
  /// The assumptions, in words; for NOT_APPLICABLE the one that failed, for NOT_MEASURED what is
  /// missing and how to record it.
  std::string gate;
  /// For NOT_MEASURED: the statistic that the overhead budget did not allow; empty: another reason.
  std::string deferred;
  std::string advice;  ///< what a practitioner should do; empty: nothing
  std::string source;
  /// 0..1: how much this deserves the reader's attention. From 0.8: something is wrong or a setting
  /// costs a factor; 0.5 to 0.8: an actionable number; below 0.5: for the record. See importance().
  double importance = 0;
  /// One-sided probability of a deviation this large if the theory held at the edge of its
  /// tolerance; NaN if nothing was tested. Used to control false discoveries over layers.
  double p_value = kUnknown;
  /// Statistic whose series is the evidence, and the level predicted for it in that series' unit
  /// (NaN: none).
  std::string evidence_statistic;
  double evidence_level = kUnknown;
  /// In a live run, this finding raises an alarm with this code (see LiveFinding); empty: none.
  std::string alarm;
};

/// The importance of a finding by its verdict: a violation 0.9, a confirmed law 0.4, underpowered
/// 0.25, not yet 0.2, not measured 0.1, not applicable 0.05; findings about a single layer or
/// parameter count 0.8 of that. Laws with more valuable advice set their own.
double importance(Verdict verdict, bool whole_run);

/// What `tycho laws` prints and the report shows beside a verdict.
struct LawDescription {
  std::string id;
  std::string title;  ///< "Gradient noise scale"
  Line line = Line::kEmpiricalLaws;
  std::string formula;      ///< plain text
  std::string assumptions;  ///< the gate, in words
  std::string what_to_do;
  std::string source;                   ///< citation
  std::vector<std::string> statistics;  ///< the statistics it reads
  std::vector<std::string> caveats;
};

}  // namespace tycho::analyzer
