#pragma once

#include <cstdint>
#include <string>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// How urgent something is. Alarm: the run is broken, a gate may stop it. Warning: look at it.
/// Note: steps or time could be saved.
enum class Severity { kAlarm, kWarning, kNote };
/// alarm, warning, note.
const char* to_string(Severity severity);

/// Something that is, or may be, wrong with a run or its trace, found without a law.
struct Alarm {
  std::string code;  ///< stable, lower_snake_case: loss_diverged
  Severity severity = Severity::kNote;
  std::string scope = "run";  ///< "run", "layer:<path>", "param:<name>"
  std::string title;          ///< "The loss diverged"
  std::string text;           ///< what was seen, and what to do, in sentences
  int64_t step = -1;          ///< where it began; -1: no step of its own
  double value = kUnknown;    ///< its size there
};

}  // namespace tycho::analyzer
