#pragma once

#include <optional>

#include "src/loss/loss_course.h"
#include "tycho/analyzer/alarm.h"
#include "tycho/trace/run_reader.h"

namespace tycho::analyzer {

// Alarms that say the same while a run is going on and in its report. What the loss raises is
// loss_alarms().

/// not_finite, of the first event that says that numbers are not finite. An alarm; a warning where
/// the last observed loss is finite and of a later step, or of the same one while the run goes on:
/// with a loss scale, a step whose gradients overflow is skipped, and nothing is wrong.
Alarm not_finite_alarm(const v1::Event& first, const v1::ModelDescription& model,
                       const LossCourse& course, bool goes_on);

/// trace_incomplete, a warning: messages that the writer dropped, or could not write. Nothing where
/// it lost none.
std::optional<Alarm> losing_data_alarm(const v1::Health& health);

}  // namespace tycho::analyzer
