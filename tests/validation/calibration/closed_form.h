#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tycho/analyzer/engine.h"

namespace tycho::analyzer {

/// A number that theory gives, or that was published, and how the analyzer comes to it. Registered
/// beside a law's tests; calibration_test.cpp holds both against each other with fresh seeds and
/// writes them side by side into docs/validation.md.
struct ClosedForm {
  std::string law;
  std::string quantity;  ///< with its setting, without a full stop
  std::string formula;   ///< or where the number was published
  double value = 0;
  /// Its `measured` is what the analyzer makes of a simulated run; where the interval is not NaN it
  /// is of that.
  std::function<Finding(uint32_t seed)> run;
  double tolerance = 0.05;  ///< largest |measured - value| that is no error, relative to `value`,
                            ///< or absolute where that is 0
};

/// All that were registered, by law.
std::vector<ClosedForm>& closed_forms();

/// Registers them from a source file.
struct ClosedForms {
  explicit ClosedForms(std::vector<ClosedForm> forms);
};

/// A finding that says `value`, without an interval: of what is read off a text or a fit.
Finding said(double value);

}  // namespace tycho::analyzer
