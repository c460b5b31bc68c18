#pragma once

#include "tycho/analyzer/live_finding.h"
#include "tycho/v1/record.pb.h"

namespace tycho::analyzer {

/// The part of a finding that a trace keeps.
v1::Finding to_message(const LiveFinding& finding);

/// A finding from a trace: `line`, `source`, `p_value` and the evidence are not kept.
LiveFinding from_message(const v1::Finding& message);

}  // namespace tycho::analyzer
