#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "report.h"

namespace tycho::analyzer {

/// Series of one quantity that were first seen outside their range at the same step, as a row of a
/// table.
struct IncidentRow {
  int64_t step = -1;
  std::string what;       ///< "the norm of the gradient of fc2 (Linear 64 -> 64) and 3 more layers"
  std::string usual;      ///< median of before
  std::string seen;       ///< the value at `step`, with its factor: "12 (24 times)"
  std::string spreads;    ///< its distance in spreads of before; empty: not known
  std::string within;     ///< "in its range at step 40": the last such step; empty: not known
  std::string note;       ///< what its value means; often empty
  std::string statistic;  ///< of the chart that shows it
  std::string scope;
};

/// What a report says of an incident.
struct IncidentWords {
  std::string title;
  std::vector<std::string> sentences;
  std::vector<IncidentRow> rows;  ///< in the order of the steps, at most kMostRows
  size_t left_out = 0;            ///< rows
  static constexpr size_t kMostRows = 10;
};
IncidentWords describe(const Report& report, const Incident& incident);

/// Why there is no order of events though the loss diverged or was not finite; empty where there is
/// one, or nothing to explain.
std::string no_incident(const Report& report);

/// "run" or "layer:<path>".
std::string scope_of(const Report& report, const Mover& mover);

}  // namespace tycho::analyzer
