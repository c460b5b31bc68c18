#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {

/// What to change in the next run, or to repair in this one, and why.
struct Decision {
  std::string code;        ///< stable, lower_snake_case
  std::string title;       ///< what to do, in the imperative
  std::string because;     ///< what was measured, with steps and sizes
  std::string expect;      ///< what it should gain
  std::string refuted_by;  ///< what would show that it was wrong
  Severity severity = Severity::kWarning;
  /// 0..1, by which decisions are ranked: from 0.9 nothing or next to nothing is learned without
  /// it; from 0.5 a large part of the run's progress is at stake; below, steps or time are.
  double gain = 0;
  /// Ids of laws that were tested in this run and belong to it; often none.
  std::vector<std::string> laws;
  std::string statistic;  ///< of the chart that shows it; may be empty
  std::string scope;
  int64_t step = -1;         ///< where it shows first; -1: no step of its own
  std::string setting;       ///< what to change: learning_rate, batch_size, ...; empty: no number
  double factor = kUnknown;  ///< by how much, relative to the run
};

}  // namespace tycho::analyzer
