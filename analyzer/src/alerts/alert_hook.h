#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "src/alerts/alert.h"
#include "tycho/trace/status.h"

namespace tycho::analyzer {

/// One way of telling somebody. deliver() is called by one thread at a time, cancel() by any.
class AlertHook {
 public:
  struct Outcome {
    bool delivered = false;
    bool try_again = false;  ///< it may come through later
    std::string why;         ///< it was not delivered
  };
  virtual ~AlertHook() = default;
  /// For messages; without anything that is secret.
  virtual std::string name() const = 0;
  /// Takes so long as its timeout at most, and a second or two more.
  virtual Outcome deliver(const Alert& alert) = 0;
  /// Makes a deliver() that is going on, and those to come, return soon.
  virtual void cancel() = 0;
};

/// Runs `command` by /bin/sh, in a process group of its own, with the alert as JSON on its standard
/// input and as variables in its environment (alert_environment). Nothing of the alert becomes part
/// of the command line. Its standard output goes nowhere; where it fails, the beginning of what it
/// wrote on its standard error is part of `why`. Ended after `timeout`, with what it started. A
/// command that is not found is not tried again.
std::unique_ptr<AlertHook> make_command_hook(std::string command,
                                             std::chrono::milliseconds timeout);

/// Posts the alert as JSON (application/json). An answer of 2xx is a delivery; no answer, 408, 429
/// and 5xx are tried again, any other answer is not. Redirections are not followed, certificates
/// are verified, proxies are not used. Fails where `url` is none (http://, https://, without user
/// and password), and for https where cpp-httplib was built without OpenSSL.
Result<std::unique_ptr<AlertHook>> open_webhook(const std::string& url,
                                                std::chrono::milliseconds timeout);

}  // namespace tycho::analyzer
