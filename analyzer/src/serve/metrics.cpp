#include "metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

namespace tycho::analyzer {
namespace {

using trace::RunState;
using Cards = std::vector<std::shared_ptr<const RunCard>>;

constexpr std::array<RunState, 6> kStates = {RunState::kWaiting,  RunState::kLive,
                                             RunState::kFinished, RunState::kDied,
                                             RunState::kGone,     RunState::kUnreadable};
constexpr std::array<Verdict, 6> kVerdicts = {Verdict::kHolds,        Verdict::kViolated,
                                              Verdict::kUnderpowered, Verdict::kNotYet,
                                              Verdict::kNotMeasured,  Verdict::kNotApplicable};
constexpr std::array<Severity, 3> kSeverities = {Severity::kAlarm, Severity::kWarning,
                                                 Severity::kNote};

// A label's value. Bytes that are no UTF-8 would make the whole page unreadable.
std::string label(const std::string& text) {
  const std::string valid =
      nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::string out;
  for (const char c : nlohmann::json::parse(valid).get<std::string>()) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

// Infinite values are written so; NaN is a value too, and says that the loss is not a number.
std::string value_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return fmt::format("{}", value);
}

class Page {
 public:
  void family(const char* name, const char* help, const char* type = "gauge") {
    name_ = name;
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void sample(const std::string& labels, double value) {
    text_ += fmt::format("{}{} {}\n", name_, labels.empty() ? "" : "{" + labels + "}",
                         value_text(value));
  }
  std::string take() { return std::move(text_); }

 private:
  std::string name_;
  std::string text_;
};

Cards choose(Cards cards, size_t most) {
  std::stable_sort(cards.begin(), cards.end(), [](const auto& a, const auto& b) {
    const bool a_live = a->state == RunState::kLive;
    const bool b_live = b->state == RunState::kLive;
    return a_live != b_live ? a_live : a->start_time_ns > b->start_time_ns;
  });
  if (cards.size() > most) cards.resize(most);
  // A page whose order does not change from scrape to scrape.
  std::sort(cards.begin(), cards.end(),
            [](const auto& a, const auto& b) { return a->name < b->name; });
  return cards;
}

}  // namespace

std::string metrics_text(const Cards& all, size_t most_runs, int64_t now_ns,
                         const AlertCounters& alerts) {
  Page page;
  page.family("tycho_alerts_total",
              "Alerts to the command and the webhook, by what became of them.", "counter");
  page.sample("result=\"sent\"", static_cast<double>(alerts.sent));
  page.sample("result=\"failed\"", static_cast<double>(alerts.failed));
  page.sample("result=\"left_out\"", static_cast<double>(alerts.left_out));
  page.sample("result=\"dropped\"", static_cast<double>(alerts.dropped));
  page.family("tycho_runs", "Runs below the directories that are served, by state.");
  for (const RunState state : kStates) {
    const auto count = std::count_if(all.begin(), all.end(),
                                     [&](const auto& card) { return card->state == state; });
    page.sample(fmt::format("state=\"{}\"", to_string(state)), static_cast<double>(count));
  }
  const Cards cards = choose(all, most_runs);
  page.family("tycho_runs_shown", "Runs that have gauges of their own; there is a limit.");
  page.sample("", static_cast<double>(cards.size()));
  const auto run = [](const RunCard& card) { return "run=\"" + label(card.name) + "\""; };
  page.family("tycho_run_state", "1 for the state that a run is in, 0 for the others.");
  for (const auto& card : cards) {
    for (const RunState state : kStates)
      page.sample(fmt::format("{},state=\"{}\"", run(*card), to_string(state)),
                  card->state == state ? 1 : 0);
  }
  // What is not known is left out, and a loss that is not a number is not unknown.
  const auto each = [&](const char* name, const char* help,
                        const std::function<bool(const RunCard&)>& is_known,
                        const std::function<double(const RunCard&)>& value) {
    page.family(name, help);
    for (const auto& card : cards) {
      if (card->is_read && is_known(*card)) page.sample(run(*card), value(*card));
    }
  };
  const auto has_step = [](const RunCard& card) { return card.step >= 0; };
  each("tycho_run_step", "The last step that was recorded.", has_step,
       [](const RunCard& card) { return static_cast<double>(card.step); });
  each(
      "tycho_run_steps_per_second", "Rate of the last steps, by the trainer's clock.",
      [](const RunCard& card) { return std::isfinite(card.steps_per_second); },
      [](const RunCard& card) { return card.steps_per_second; });
  each(
      "tycho_run_loss", "The last training loss that was observed.",
      [](const RunCard& card) { return card.has_loss; },
      [](const RunCard& card) { return card.loss; });
  each(
      "tycho_run_lowest_loss", "The lowest finite training loss that was observed.",
      [](const RunCard& card) { return std::isfinite(card.lowest_loss); },
      [](const RunCard& card) { return card.lowest_loss; });
  each(
      "tycho_run_cost_ratio", "Share of the time of training that Tycho took.",
      [](const RunCard& card) { return std::isfinite(card.cost); },
      [](const RunCard& card) { return card.cost; });
  each(
      "tycho_run_lag_seconds", "Time since the last observation of a run that is live.",
      // A lag below zero is that of two clocks, and says nothing.
      [&](const RunCard& card) {
        return card.state == RunState::kLive && card.last_time_ns > 0 &&
               card.last_time_ns <= now_ns;
      },
      [&](const RunCard& card) {
        return (static_cast<double>(now_ns) - static_cast<double>(card.last_time_ns)) * 1e-9;
      });
  page.family("tycho_run_remarks", "Alarms, warnings and notes about a run, by severity.");
  for (const auto& card : cards) {
    if (!card->is_read) continue;
    for (const Severity severity : kSeverities)
      page.sample(fmt::format("{},severity=\"{}\"", run(*card), to_string(severity)),
                  card->count(severity));
  }
  page.family("tycho_run_laws", "Laws of a run by verdict.");
  for (const auto& card : cards) {
    if (card->laws.empty()) continue;
    for (const Verdict verdict : kVerdicts)
      page.sample(fmt::format("{},verdict=\"{}\"", run(*card), to_string(verdict)),
                  card->count(verdict));
  }
  page.family("tycho_law_holds",
              "1: the law holds, 0: it is violated; missing: it was not judged.");
  for (const auto& card : cards) {
    for (const auto& [law, verdict] : card->laws) {
      if (verdict == Verdict::kHolds || verdict == Verdict::kViolated)
        page.sample(fmt::format("{},law=\"{}\"", run(*card), label(law)),
                    verdict == Verdict::kHolds ? 1 : 0);
    }
  }
  return page.take();
}

}  // namespace tycho::analyzer
