#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "report.h"

namespace tycho::analyzer {

// Parts of the page of one run, in HTML.

/// Series, spectrum and predicted levels, as page.js draws them.
nlohmann::json view_data(const Report& report);

/// Identity, configuration, versions, environment and segments.
std::string identity_section(const Report& report);
/// What was recorded and is missing.
std::string lost_section(const Report& report);
/// Events by reason: what failed, what was not observed and what to do, what happened.
std::string happenings_section(const Report& report);
/// Time on the training thread, by probe.
std::string cost_section(const Report& report);

}  // namespace tycho::analyzer
