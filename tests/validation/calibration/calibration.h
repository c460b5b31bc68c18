#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tycho/analyzer/engine.h"

namespace tycho::analyzer {

/// What a law must say in a setting whose truth is known.
enum class Expected {
  kHolds,     ///< theory holds: HOLDS, hardly ever VIOLATED
  kViolated,  ///< it is known to fail: VIOLATED, hardly ever HOLDS
  kSilent,    ///< its assumptions fail, or nothing can be known: hardly ever HOLDS or VIOLATED
  kUnseen     ///< it fails in a way that no statistic shows: a known limit, nothing is demanded
};

/// A simulated setting of one law. Registered beside the law's tests; run with fresh seeds by
/// calibration_test.cpp, which also writes docs/validation.md.
struct CalibrationCase {
  std::string law;
  std::string setting;  ///< for a reader of the document, without a full stop
  Expected expected = Expected::kHolds;
  std::function<Finding(uint32_t seed)> run;
  double power = 0.8;       ///< share of the runs that must say what is expected; not for kSilent
  double truth = kUnknown;  ///< of `measured`; NaN: no interval is tested
  bool predicted_is_true = false;  ///< the truth is what the finding predicts
  double coverage = 0.95;          ///< of the intervals, at least
  int runs = 200;  ///< for the document, fewer where a run takes long; CI makes a tenth of them
};

/// All that were registered, by law.
std::vector<CalibrationCase>& calibration_cases();

/// Registers cases from a source file.
struct CalibrationCases {
  explicit CalibrationCases(std::vector<CalibrationCase> cases);
};

/// Verdicts over the runs of one setting.
struct Tally {
  int runs = 0;
  int holds = 0;
  int violated = 0;
  int underpowered = 0;
  int intervals = 0;  ///< with a known truth and finite
  int covered = 0;
  double seconds = 0;  ///< of processor time
  int other() const { return runs - holds - violated - underpowered; }
  void add(const Tally& another);
};

/// Runs `setting` with seeds that follow from `seed` and its names, on all cores: `runs` of them,
/// or as many, but not fewer than 40, as fit in `seconds` of processor time. The first are the
/// same.
Tally measure(const CalibrationCase& setting, int runs, double seconds, uint64_t seed);

/// How far a share out of `runs` may be from `share` by chance: 3.3 standard deviations, 1 in 2000.
double slack(double share, int runs);

}  // namespace tycho::analyzer
