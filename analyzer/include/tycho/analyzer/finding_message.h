#pragma once

#include "tycho/analyzer/live_finding.h"
#include "tycho/v1/record.pb.h"

namespace tycho::analyzer {

/// What a trace keeps of a finding.
v1::Finding to_message(const LiveFinding& finding);

/// What a trace has of a finding: `line`, `source`, `p_value` and the evidence are not kept.
LiveFinding from_message(const v1::Finding& message);

}  // namespace tycho::analyzer
