#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace tycho::analyzer {

enum class Verdict { kHolds, kViolated, kNotApplicable, kUnderpowered, kNotYet };
/// HOLDS, VIOLATED, NOT_APPLICABLE, UNDERPOWERED, NOT_YET.
const char* to_string(Verdict verdict);

/// The five lines of learning mechanics (Simon et al. 2026).
enum class Line { kSolvableSettings, kSimplifyingLimits, kEmpiricalLaws, kHyperparameters, kUniversalPhenomena };
const char* to_string(Line line);

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

/// One law at one scope.
struct Finding {
  std::string law;       ///< stable id, lower_snake_case: gradient_noise_scale
  Line line = Line::kEmpiricalLaws;
  std::string scope;     ///< "run", "layer:<path>", "param:<name>"
  Verdict verdict = Verdict::kNotYet;
  double measured = kUnknown;
  double predicted = kUnknown;
  double ci_low = kUnknown;   ///< of `measured`
  double ci_high = kUnknown;
  double confidence = 0.95;
  std::string unit;
  int64_t window_begin = -1;  ///< steps used, inclusive
  int64_t window_end = -1;
  std::string gate;      ///< the assumptions, and for NOT_APPLICABLE the one that failed, in words
  std::string advice;    ///< what a practitioner does about it; empty: nothing
  std::string source;
  double importance = 0; ///< 0..1: how much this deserves the reader's attention
  /// Statistic whose series is the evidence, and the level predicted for it in that series' unit (NaN: none).
  std::string evidence_statistic;
  double evidence_level = kUnknown;
};

/// What `tycho laws` prints and the report shows beside a verdict.
struct LawDescription {
  std::string id;
  std::string title;        ///< "Gradient noise scale"
  Line line = Line::kEmpiricalLaws;
  std::string formula;      ///< plain text
  std::string assumptions;  ///< the gate, in words
  std::string what_to_do;
  std::string source;       ///< citation
  std::vector<std::string> statistics;  ///< the statistics it reads
  std::vector<std::string> caveats;
};

}  // namespace tycho::analyzer
