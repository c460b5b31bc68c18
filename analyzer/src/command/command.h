#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "tycho/trace/status.h"

// The subcommands of `tycho`. Each adds itself to the command line and returns its exit status when
// it is run.
namespace tycho::analyzer::command {

enum ExitStatus { kSuccess = 0, kFailure = 1, kUsage = 2, kLossy = 3, kGate = 4 };

using Action = std::function<int()>;

void add_report(CLI::App* app, Action* action);
void add_compare(CLI::App* app, Action* action);
void add_export(CLI::App* app, Action* action);
void add_info(CLI::App* app, Action* action);
void add_verify(CLI::App* app, Action* action);
void add_recover(CLI::App* app, Action* action);
void add_replay(CLI::App* app, Action* action);
void add_laws(CLI::App* app, Action* action);
void add_watch(CLI::App* app, Action* action);
void add_serve(CLI::App* app, Action* action);

/// Says it on stderr as `tycho: ...`, in one line, and returns the exit status.
int fail(const Status& status);
/// The same for what is no failure. Nothing is said where stderr is closed.
void say(const std::string& message);
/// Progress, on a line of its own that the next one overwrites; empty: takes it away.
void show_progress(const std::string& message);
/// Says the first of what is missing, or may be, and returns the exit status: kLossy, or kSuccess.
int tell_losses(const std::vector<std::string>& losses);
bool stdout_is_terminal();
bool stderr_is_terminal();
/// Columns of the terminal; 100 where that is not known.
int terminal_width();
/// html, text or json: as asked for, else by the ending of the file's name, HTML for other files
/// and text for standard output.
std::string choose_format(const std::string& asked, const std::string& output);
/// A terminal that wants colours: NO_COLOR is not set.
bool wants_colour();

}  // namespace tycho::analyzer::command
