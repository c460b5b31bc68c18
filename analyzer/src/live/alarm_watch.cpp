#include "src/live/alarm_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {
namespace {

/// What one more observation cannot take back.
bool is_certain(const std::string& code) { return code == "loss_not_finite"; }

const char* title_of(const std::string& law_alarm) {
  if (law_alarm == "edge_passed") return "The sharpness is past the edge, and the loss rises";
  if (law_alarm == "batch_far_past_noise_scale") return "The batch is far past the noise scale";
  return "A law asks for attention";
}

}  // namespace

void AlarmWatch::observe(const RunContext& context, const Frame& frame, const v1::Health& health,
                         const Say& say) {
  course_.observe(context, frame);
  stalled_.observe(context, frame);
  const bool more_not_finite = course_.not_finite() != not_finite_;
  not_finite_ = course_.not_finite();
  if (more_not_finite || loss_is_open()) settle_loss(false, say);
  settle_facts(context, health, false, say);
}

void AlarmWatch::look(const RunContext& context, const v1::Health& health,
                      const std::vector<Finding>& findings, bool last, const Say& say) {
  if (last || !loss_is_open()) settle_loss(last, say);
  if (last) settle_facts(context, health, last, say);
  std::vector<Alarm> found;
  for (const Finding& finding : findings) {
    if (finding.alarm.empty()) continue;
    Alarm alarm;
    alarm.code = finding.alarm;
    alarm.severity = Severity::kWarning;
    alarm.scope = finding.scope;
    alarm.title = title_of(finding.alarm);
    alarm.text = finding.advice;
    alarm.step = finding.window_begin;
    alarm.value = finding.measured;
    found.push_back(std::move(alarm));
  }
  settle(Group::kLaws, std::move(found), last, say);
}

bool AlarmWatch::loss_is_open() const {
  bool broken = false;
  for (const auto& [key, state] : states_) {
    if (state.group != Group::kLoss) continue;
    if (state.raised ? state.missing > 0 : state.seen > 0) return true;
    broken = broken || (state.raised && state.alarm.severity == Severity::kAlarm);
  }
  return !broken && course_.open_break() != nullptr;
}

void AlarmWatch::settle_loss(bool last, const Say& say) {
  std::vector<Alarm> found;
  for (const LossAlarm& each : loss_alarms(course_)) {
    if (each.severity == Severity::kNote) continue;
    Alarm alarm;
    alarm.code = each.code;
    alarm.severity = each.severity;
    alarm.title = each.title;
    alarm.text = each.text;
    alarm.step = each.at.step;
    alarm.value = each.at.value;
    found.push_back(std::move(alarm));
  }
  settle(Group::kLoss, std::move(found), last, say);
}

void AlarmWatch::settle_facts(const RunContext& context, const v1::Health& health, bool last,
                              const Say& say) {
  std::vector<Alarm> found = stalled_.alarms(context);
  const auto& events = context.events();
  for (; events_seen_ < events.size() && first_not_finite_ < 0; ++events_seen_) {
    if (events[events_seen_].kind() == v1::Event::NON_FINITE)
      first_not_finite_ = static_cast<int>(events_seen_);
  }
  if (first_not_finite_ >= 0) {
    const v1::Event& event = events[static_cast<size_t>(first_not_finite_)];
    const bool harmless = course_.observed() > 0 && std::isfinite(course_.last().value);
    Alarm alarm;
    alarm.code = "not_finite";
    // With a loss scale, a step whose gradients overflow is skipped, and nothing is wrong.
    alarm.severity = harmless ? Severity::kWarning : Severity::kAlarm;
    alarm.title = "Numbers that are not finite";
    alarm.step = event.step();
    alarm.text = fmt::format(
        "First at step {}, in {}: {}. {}", event.step(),
        context.scope_name(event.scope(), event.entity()),
        event.message().empty() ? event.code() : event.message(),
        harmless ? "The loss is finite; if the step was not skipped, look at what this layer was "
                   "given."
                 : "What is computed from them afterwards means nothing: lower the learning rate, "
                   "clip gradients, or look at what this layer was given.");
    found.push_back(std::move(alarm));
  }
  if (health.messages_dropped() > 0 || health.write_failures() > 0) {
    Alarm alarm;
    alarm.code = "trace_incomplete";
    alarm.severity = Severity::kWarning;
    alarm.title = "The trace is losing data";
    alarm.step = health.step();
    alarm.value = static_cast<double>(health.messages_dropped());
    alarm.text = fmt::format(
        "{} messages were dropped, and {} writes failed{}. Training is not affected; what is "
        "missing "
        "cannot be judged later.",
        health.messages_dropped(), health.write_failures(),
        health.last_write_failure().empty() ? "" : " (" + health.last_write_failure() + ")");
    found.push_back(std::move(alarm));
  }
  settle(Group::kFacts, std::move(found), last, say);
}

void AlarmWatch::settle(Group group, std::vector<Alarm> found, bool last, const Say& say) {
  for (auto& [key, state] : states_) {
    if (state.group == group) ++state.missing;
  }
  for (Alarm& alarm : found) {
    State& state = states_[{alarm.code, alarm.scope}];
    state.group = group;
    state.missing = 0;
    ++state.seen;
    const bool confirmed =
        last || group != Group::kLoss || is_certain(alarm.code) || state.seen >= kConfirming;
    const bool news = confirmed && (!state.raised || state.alarm.severity != alarm.severity);
    state.alarm = std::move(alarm);
    state.raised = state.raised || confirmed;
    if (news) say(state.alarm, false);
  }
  for (auto entry = states_.begin(); entry != states_.end();) {
    const State& state = entry->second;
    const uint32_t patience = group == Group::kLoss && state.raised && !last ? kConfirming : 1;
    if (state.group != group || state.missing < patience) {
      ++entry;
      continue;
    }
    if (state.raised) say(state.alarm, true);
    entry = states_.erase(entry);
  }
}

std::vector<Alarm> AlarmWatch::raised() const {
  std::vector<Alarm> result;
  for (const auto& [key, state] : states_) {
    if (state.raised) result.push_back(state.alarm);
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const Alarm& a, const Alarm& b) { return a.severity < b.severity; });
  return result;
}

}  // namespace tycho::analyzer
