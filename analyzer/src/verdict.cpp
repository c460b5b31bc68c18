#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kHolds:
      return "HOLDS";
    case Verdict::kViolated:
      return "VIOLATED";
    case Verdict::kNotApplicable:
      return "NOT_APPLICABLE";
    case Verdict::kUnderpowered:
      return "UNDERPOWERED";
    case Verdict::kNotYet:
      return "NOT_YET";
    case Verdict::kNotMeasured:
      return "NOT_MEASURED";
  }
  return "UNKNOWN";
}

const char* to_string(Relation relation) {
  switch (relation) {
    case Relation::kEqual:
      return "equal";
    case Relation::kAtMost:
      return "at most";
    case Relation::kAtLeast:
      return "at least";
  }
  return "unknown";
}

const char* to_string(Line line) {
  switch (line) {
    case Line::kSolvableSettings:
      return "solvable settings";
    case Line::kSimplifyingLimits:
      return "simplifying limits";
    case Line::kEmpiricalLaws:
      return "simple empirical laws";
    case Line::kHyperparameters:
      return "hyperparameters disentangled";
    case Line::kUniversalPhenomena:
      return "universal phenomena";
  }
  return "unknown";
}

double importance(Verdict verdict, bool whole_run) {
  double value = 0;
  switch (verdict) {
    case Verdict::kViolated:
      value = 0.9;
      break;
    case Verdict::kHolds:
      value = 0.4;
      break;
    case Verdict::kUnderpowered:
      value = 0.25;
      break;
    case Verdict::kNotYet:
      value = 0.2;
      break;
    case Verdict::kNotMeasured:
      value = 0.1;
      break;
    case Verdict::kNotApplicable:
      value = 0.05;
      break;
  }
  return whole_run ? value : 0.8 * value;
}

}  // namespace tycho::analyzer
