#pragma once

#include <cstdint>
#include <vector>

#include "src/incident/incident.h"
#include "src/incident/recent_values.h"
#include "src/loss/loss_course.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// Keeps the last values of what is watched, and looks back when the loss leaves its range or is
/// not finite: which series had left theirs, and when.
///
/// An incident begins where LossCourse opens a break, or with a loss that is not finite outside of
/// one. It is looked at kAfter observed losses later, or at once where it is asked for before. The
/// window that is searched is the last quarter of what is kept of the loss, at most kWindow losses.
/// The largest kMostIncidents are kept. Memory: that of RecentValues, about 16 MB at most for up to
/// 7 000 layers. One thread at a time.
class IncidentWatch {
 public:
  static constexpr size_t kAfter = 12;
  static constexpr size_t kWindow = 48;
  static constexpr size_t kMostIncidents = 8;

  IncidentWatch();
  /// With each frame, when `course` has taken it.
  void observe(const RunContext& context, const Frame& frame, const LossCourse& course);
  /// Those that belong to what loss_alarms(course) says of a divergence, a jump, spikes (the
  /// largest) or losses that are not finite, one for each of these, by step. None where the loss
  /// raises no such alarm.
  std::vector<Incident> incidents(const LossCourse& course) const;

 private:
  Incident look_back() const;
  void keep(Incident incident);

  std::vector<RecentValues> recent_;
  std::vector<Incident> kept_;
  int64_t open_ = -1;  // the step of the incident that is waited for
  bool open_finite_ = true;
  size_t since_ = 0;       // losses since then
  int64_t break_ = -1;     // the begin of the break seen last
  uint64_t observed_ = 0;  // losses
  bool was_finite_ = true;
};

}  // namespace tycho::analyzer
