#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "src/alerts/alert_hook.h"

namespace tycho::analyzer {

/// Which alerts may be sent: the same (code, scope and severity of a run) not again within a time,
/// and not more than a number in each minute. Memory is bounded by the two.
class AlertLimit {
 public:
  using Clock = std::chrono::steady_clock;
  AlertLimit(std::chrono::milliseconds same_alarm, size_t per_minute)
      : same_alarm_(same_alarm), per_minute_(per_minute) {}
  /// Whether it may be sent now; if so, it counts as sent.
  bool allows(const Alert& alert, Clock::time_point now);

 private:
  const std::chrono::milliseconds same_alarm_;
  const size_t per_minute_;
  std::map<std::string, Clock::time_point> sent_;  // of the last same_alarm_
  std::deque<Clock::time_point> times_;            // of the last minute
};

struct AlertSenderOptions {
  std::chrono::milliseconds same_alarm{300'000};
  size_t per_minute = 30;
  size_t most_waiting = 100;
  int most_attempts = 6;
  std::chrono::milliseconds first_pause{1000};  ///< doubled after each attempt
  std::chrono::milliseconds longest_pause{60'000};
  std::chrono::milliseconds last_wait{2000};  ///< for a hook that was cancelled
};

struct AlertCounters {
  uint64_t sent = 0;
  uint64_t failed = 0;    ///< given up
  uint64_t left_out = 0;  ///< by the limit
  uint64_t dropped = 0;   ///< too many were waiting, or there was no time left
  uint64_t attempts = 0;  ///< deliveries that were tried
};

/// Tells a hook of alerts, in their order, on a thread of its own. send() never waits. What fails
/// is tried again, later each time; those behind it wait. All members may be called from any
/// thread, but close() and the destructor from one.
class AlertSender {
 public:
  explicit AlertSender(std::unique_ptr<AlertHook> hook, AlertSenderOptions options = {});
  /// As close() with no patience.
  ~AlertSender();
  AlertSender(const AlertSender&) = delete;
  AlertSender& operator=(const AlertSender&) = delete;

  void send(Alert alert);
  AlertCounters counters() const;
  /// What the first delivery failed of that did; once.
  std::optional<std::string> take_trouble();
  /// Takes no more, and waits until all is delivered or given up, or the time is over. What is
  /// being delivered then is cancelled, and what still waits is dropped. A hook that does not
  /// return within `last_wait` more is left behind, with the thread.
  void close(std::chrono::milliseconds patience);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace tycho::analyzer
