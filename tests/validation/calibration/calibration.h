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
  kSilent     ///< its assumptions fail, or nothing can be known: hardly ever HOLDS or VIOLATED
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
};

/// All that were registered, by law.
std::vector<CalibrationCase>& calibration_cases();

/// Registers cases from a source file.
struct CalibrationCases {
  explicit CalibrationCases(std::vector<CalibrationCase> cases);
};

}  // namespace tycho::analyzer
