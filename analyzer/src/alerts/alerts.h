#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "src/alerts/alert_sender.h"
#include "src/alerts/alert_watch.h"

namespace tycho::analyzer {

/// What a user asked for.
struct AlertOptions {
  std::string command;  ///< empty: none
  std::string webhook;  ///< an address; empty: none
  Severity from = Severity::kAlarm;
  std::chrono::milliseconds command_timeout{30'000};
  std::chrono::milliseconds webhook_timeout{10'000};
  AlertSenderOptions sender;
};

/// The hooks that are told of alarms of runs: a command, a webhook, both or none. Following a run
/// never waits for them. All members may be called from any thread, but close() from one.
class Alerts {
 public:
  /// Fails where the webhook's address is none.
  static Result<std::unique_ptr<Alerts>> open(const AlertOptions& options);

  /// There is somebody to tell.
  bool any() const { return !senders_.empty(); }
  /// For one run. `tell_old`: see AlertWatch.
  AlertWatch watch(bool tell_old) const { return AlertWatch(from_, tell_old); }
  void send(const std::vector<Alert>& news);
  /// Of all hooks together: an alert to two hooks counts twice.
  AlertCounters counters() const;
  /// A sentence for each hook that failed for the first time since the last call.
  std::vector<std::string> take_troubles();
  /// Each hook as AlertSender::close().
  void close(std::chrono::milliseconds patience);

 private:
  explicit Alerts(Severity from) : from_(from) {}
  Severity from_;
  std::vector<std::unique_ptr<AlertSender>> senders_;
};

/// "3 alerts sent, 1 failed": how it ended; empty where nothing was lost.
std::string losses_text(const AlertCounters& counters);

}  // namespace tycho::analyzer
