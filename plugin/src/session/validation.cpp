#include <algorithm>

#include "session/session_impl.h"

namespace tycho {

void Session::Impl::validation(double loss) {
  if (!usable() || close_wanted) return;
  // With the first message the trace begins, and no probe can be added any more.
  if (!had_step) {
    first_validation = loss;
    return;
  }
  // Readers expect steps in order, and records of earlier ones may still be on their way.
  harvest(true);
  record_validation(loss);
}

void Session::Impl::record_validation(double loss) {
  const auto probe = std::find_if(probes.begin(), probes.end(), [](const ProbeEntry& each) {
    return each.ids.count("validation_loss") > 0;
  });
  RecordBuilder recorder(probe->ids, say, step_number);
  recorder.run("validation_loss", loss, Recorder::kUnknown);
  trace->push(recorder.take(), probe->name, wall_clock_ns());
}

}  // namespace tycho
