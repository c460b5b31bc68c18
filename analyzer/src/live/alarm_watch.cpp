#include "src/live/alarm_watch.h"

#include <algorithm>

#include "src/live/alarm_texts.h"
#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {
namespace {

/// What one more observation cannot take back.
bool is_certain(const std::string& code) { return code == "loss_not_finite"; }

const char* title_of(const std::string& law_alarm) {
  if (law_alarm == "edge_passed") return "The sharpness is past the edge, and the loss rises";
  if (law_alarm == "batch_far_past_noise_scale") return "The batch is far past the noise scale";
  return "A law calls for attention";
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
    found.push_back(not_finite_alarm(events[static_cast<size_t>(first_not_finite_)],
                                     context.model(), course_, !last));
  }
  if (auto losing = losing_data_alarm(health)) found.push_back(std::move(*losing));
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
