#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/follow/followed_run.h"

namespace tycho::analyzer {

/// What `tycho watch` says where its output is no terminal: one line for each change of the state
/// of the run, of a verdict or of an alarm.
class WatchLines {
 public:
  /// Since the last call.
  std::vector<std::string> look(const FollowedRun& run, const std::vector<VerdictChange>& changes);

 private:
  std::optional<trace::RunState> state_;
  uint64_t restarts_ = 0;
  bool two_writers_ = false;
  std::map<std::string, std::string> alarms_;  ///< code -> severity and title
};

/// The same as an object of one line: where the run stands, its alarms, one verdict a law and the
/// changes. With `all_findings` the findings too, as in `tycho report --format json`.
std::string watch_json(const FollowedRun& run, const std::vector<VerdictChange>& changes,
                       int64_t now_ns, bool all_findings);

}  // namespace tycho::analyzer
