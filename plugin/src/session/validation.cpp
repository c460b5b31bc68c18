#include <algorithm>

#include "session/session_impl.h"

namespace tycho {

void Session::Impl::validation(double loss) {
  if (!usable() || close_wanted) return;
  if (!had_step) {
    early_validation = true;
    return;
  }
  // Readers expect steps in order, and records of earlier ones may still be on their way.
  harvest(true);
  const auto probe = std::find_if(probes.begin(), probes.end(), [](const ProbeEntry& each) {
    return each.ids.count("validation_loss") > 0;
  });
  RecordBuilder recorder(probe->ids, say, step_number - 1);
  recorder.run("validation_loss", loss, Recorder::kUnknown);
  trace->push(recorder.take(), probe->name, wall_clock_ns());
}

}  // namespace tycho
