#pragma once

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/report/report.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

// What reports for programs share.

/// null where not finite.
inline nlohmann::json number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
}

/// Numbers are null where shows_numbers() is false.
inline nlohmann::json finding_json(const Finding& finding) {
  const auto number = [shown = shows_numbers(finding)](double value) {
    return shown ? analyzer::number(value) : nlohmann::json(nullptr);
  };
  return {{"law", finding.law},
          {"line", to_string(finding.line)},
          {"scope", finding.scope},
          {"verdict", to_string(finding.verdict)},
          {"measured", number(finding.measured)},
          {"predicted", number(finding.predicted)},
          {"ci_low", number(finding.ci_low)},
          {"ci_high", number(finding.ci_high)},
          {"unit", finding.unit},
          {"window", {finding.window_begin, finding.window_end}},
          {"gate", finding.gate},
          {"advice", finding.advice},
          {"source", finding.source}};
}

}  // namespace tycho::analyzer
