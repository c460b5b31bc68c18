#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tycho/analyzer/alarm.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// What is known at a step of a live run: the verdict of a law at a scope, or an alarm.
///
/// For a verdict, the fields of Finding are those of a report of the trace up to `step`. For an
/// alarm, `law` is its code (loss_not_finite, loss_diverged, edge_passed, ...), `gate` says what
/// was seen and what to do, `measured` is its size, `window_begin` the step at which it began, and
/// `verdict` is VIOLATED while it lasts and NOT_YET once it is over.
struct LiveFinding : Finding {
  enum class Kind { kVerdict, kAlarm, kAlarmOver };
  Kind kind = Kind::kVerdict;
  int64_t step = -1;              ///< the newest observed step when it became known
  std::optional<Verdict> before;  ///< the verdict reported last; none: nothing was reported yet
  Severity severity = Severity::kNote;  ///< of an alarm
  std::string title;                    ///< of an alarm: "The loss diverged"

  /// Something is, or may be, wrong now; see severity.
  bool is_alarm() const { return kind == Kind::kAlarm; }
};

/// One line without a line end, the same everywhere:
///   step 120: edge_of_stability run: (new) -> HOLDS
///   step 130: alarm: loss_diverged run: The loss diverged
///   step 190: over: loss_diverged run: The loss diverged
std::string describe(const LiveFinding& finding);

}  // namespace tycho::analyzer
