#include "alerts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace tycho::analyzer {

Result<std::unique_ptr<Alerts>> Alerts::open(const AlertOptions& options) {
  auto alerts = std::unique_ptr<Alerts>(new Alerts(options.from));
  std::vector<std::unique_ptr<AlertHook>> hooks;
  if (!options.command.empty())
    hooks.push_back(make_command_hook(options.command, options.command_timeout));
  if (!options.webhook.empty()) {
    auto webhook = open_webhook(options.webhook, options.webhook_timeout);
    if (!webhook.ok()) return webhook.status();
    hooks.push_back(std::move(webhook).value());
  }
  for (auto& hook : hooks)
    alerts->senders_.push_back(std::make_unique<AlertSender>(std::move(hook), options.sender));
  return alerts;
}

void Alerts::send(const std::vector<Alert>& news) {
  for (const Alert& alert : news) {
    for (const auto& sender : senders_) sender->send(alert);
  }
}

AlertCounters Alerts::counters() const {
  AlertCounters sum;
  for (const auto& sender : senders_) {
    const AlertCounters each = sender->counters();
    sum.sent += each.sent;
    sum.failed += each.failed;
    sum.left_out += each.left_out;
    sum.dropped += each.dropped;
    sum.attempts += each.attempts;
  }
  return sum;
}

std::vector<std::string> Alerts::take_troubles() {
  std::vector<std::string> troubles;
  for (const auto& sender : senders_) {
    if (auto trouble = sender->take_trouble()) troubles.push_back(std::move(*trouble));
  }
  return troubles;
}

void Alerts::close(std::chrono::milliseconds patience) {
  const auto end = AlertLimit::Clock::now() + patience;
  for (const auto& sender : senders_) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - AlertLimit::Clock::now());
    sender->close(std::max(left, std::chrono::milliseconds(0)));
  }
}

std::string losses_text(const AlertCounters& counters) {
  if (counters.failed == 0 && counters.dropped == 0 && counters.left_out == 0) return "";
  return fmt::format("alerts: {} sent, {} failed, {} dropped, {} left out by the limit",
                     counters.sent, counters.failed, counters.dropped, counters.left_out);
}

}  // namespace tycho::analyzer
