#pragma once

#include <CLI/CLI.hpp>

#include "src/alerts/alerts.h"

namespace tycho::analyzer::command {

/// --on-alarm, --webhook, --alert-from and --alert-interval.
void add_alert_options(CLI::App* command, AlertOptions* options);

/// Says what failed first of each hook.
void say_troubles(Alerts* alerts);

}  // namespace tycho::analyzer::command
