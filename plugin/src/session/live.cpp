#include <fmt/format.h>

#include <algorithm>

#include "session/session_impl.h"

namespace tycho {

void Session::Impl::end_live_step(int64_t step) {
  if (live && live->started()) trace->push(trace::StepEnd{step});
}

void Session::Impl::charge_live() {
  if (!live) return;
  const double seconds = live->cpu_seconds();
  scheduler.spent(std::max(seconds - live_seconds, 0.0));
  live_seconds = std::max(seconds, live_seconds);
}

void Session::Impl::say_live() {
  if (!live) return;
  const LiveFeed::Counters counters = live->counters();
  if (counters.steps_left_out > 0) {
    notice("live_judge_behind",
           "live verdicts could not keep up and skip steps (is a listener slow?); the trace has "
           "these steps");
  }
  if (counters.listener_exceptions > 0) {
    notice("finding_listener_threw",
           fmt::format("a listener to findings threw: {}", counters.listener_exception));
  }
  if (!counters.failure.empty()) {
    notice("live_judge_ended",
           fmt::format("live verdicts have stopped: {}; recording continues", counters.failure));
  }
  if (calls_from_listener.exchange(0) > 0) {
    notice("called_by_listener",
           "a listener to findings called the session: it may call findings(), verdict() and "
           "close(); other calls are ignored");
  }
}

void Session::Impl::close_live() {
  if (!live || !live->started()) return;
  trace->flush();
  live->close();
  say_live();
}

}  // namespace tycho
