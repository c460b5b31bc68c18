#pragma once

#include <cstdint>
#include <string>

#include "src/serve/run_page.h"

namespace tycho::analyzer {

/// The list of runs; its rows come as events.
std::string list_page();
/// The report of a run that is brought up to date as events come.
std::string live_page(const std::string& name, const RunPage& page);
/// A page with the way back to the list of runs.
std::string with_bar(std::string html);
/// In its place until the run was read.
std::string waiting_page(const std::string& name);
/// A message in a page of its own.
std::string message_page(const std::string& title, const std::string& text);

}  // namespace tycho::analyzer
