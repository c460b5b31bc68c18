#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "src/follow/followed_run.h"

namespace tycho::analyzer {

struct ScreenOptions {
  size_t width = 80;    ///< columns, at least 20
  size_t height = 0;    ///< lines; 0: as many as there are
  bool colour = false;  ///< the terminal's colours
  bool unicode = true;  ///< block characters in sparklines
};

/// Which layers are shown of a model of many: all, or the first, the last and those between at
/// equal distances.
std::vector<size_t> rows_to_show(size_t layers, size_t most);

/// The lines of `tycho watch`: name, state, step, rate, loss, cost and lag; alarms; how many laws
/// came out how, and the findings that matter most; the layers with sparklines; the last changes of
/// verdicts, the newest last. No line is wider than the screen. `now_ns`: the wall clock, for the
/// lag.
std::vector<std::string> watch_screen(const FollowedRun& run,
                                      const std::deque<VerdictChange>& recent, int64_t now_ns,
                                      const ScreenOptions& options);

/// "12.3 steps/s", "4.2 s/step"; empty where it is not known.
std::string rate_text(double steps_per_second);
/// "3.1 s", "5 min", "2 h", "3 d".
std::string span_text(double seconds);
/// State, step, rate, loss, cost and lag in one line: what the head shows.
std::string status_text(const FollowedRun& run, int64_t now_ns);

}  // namespace tycho::analyzer
