#pragma once

#include <map>
#include <string>

#include "tycho/v1/record.pb.h"

namespace tycho::analyzer {

/// The run's health from that of its sessions: each session counts from 0 in every message, while
/// its costs by probe are those since the message before. Memory: one entry per probe.
class HealthTotals {
 public:
  void apply(const v1::Health& message);
  /// Messages that follow are of another session, which counts anew.
  void end_session();
  /// Counts and seconds of all sessions together; costs summed per probe, in the order of their
  /// names; the step and the last failure as they were last told.
  const v1::Health& total() const { return total_; }

 private:
  void add_up();

  v1::Health total_;
  v1::Health past_sessions_;  // totals of sessions that ended
  v1::Health session_;        // last totals of the session being read
  std::map<std::string, v1::ProbeCost> probe_cost_;
};

}  // namespace tycho::analyzer
