#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/alerts/alert.h"
#include "src/follow/followed_run.h"

namespace tycho::analyzer {

/// Which remarks about a run are news: alarms as they are raised, and as they become more serious.
/// One that was over and comes back is news again.
class AlertWatch {
 public:
  /// `from`: the least severity that is told. `tell_old` false: of a run that has ended when it is
  /// looked at first, nothing is told until it goes on.
  explicit AlertWatch(Severity from = Severity::kAlarm, bool tell_old = true)
      : from_(from), tells_(tell_old) {}

  /// After each judge() of the run. That a live run's writer died is an alarm, too: run_died.
  std::vector<Alert> look(const FollowedRun& run);

 private:
  Severity from_;
  bool tells_;
  bool was_live_ = false;
  std::map<std::pair<std::string, std::string>, Severity> raised_;  // by code and scope
};

}  // namespace tycho::analyzer
