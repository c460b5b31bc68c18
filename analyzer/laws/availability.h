#pragma once

#include <string>
#include <vector>

#include "tycho/analyzer/frame.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// Why none of `any_of`, statistics of which a law needs one, was recorded, and what the user does
/// to have the first of them. From what the trace says: which statistics its session was to record,
/// which losses it was seen to evaluate, its budget, and its events. One or two clauses without a
/// full stop: "... is not recorded by this preset: every(\"sharpness\", 50) adds it".
std::string why_not_recorded(const RunContext& context, const std::vector<std::string>& any_of);

/// Makes `finding` NOT_MEASURED: `what` ("the sharpness") was not measured, and why.
void set_not_measured(Finding& finding, const RunContext& context, const std::string& what,
                      const std::vector<std::string>& any_of);

/// NOT_MEASURED because the optimizer's settings were not recorded, or not for this parameter.
void set_no_settings(Finding& finding);

}  // namespace tycho::analyzer
