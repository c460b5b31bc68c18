#include "alarm_texts.h"

#include <fmt/format.h>

#include <cmath>

namespace tycho::analyzer {
namespace {

std::string place_of(const v1::Event& event, const v1::ModelDescription& model) {
  const uint32_t entity = event.entity();
  if (event.scope() == v1::SCOPE_LAYER && entity < static_cast<uint32_t>(model.layer_size())) {
    const std::string& path = model.layer(static_cast<int>(entity)).path();
    return path.empty() ? "the whole model" : path;
  }
  if (event.scope() == v1::SCOPE_PARAMETER &&
      entity < static_cast<uint32_t>(model.parameter_size()))
    return model.parameter(static_cast<int>(entity)).name();
  return "the run";
}

}  // namespace

Alarm not_finite_alarm(const v1::Event& first, const v1::ModelDescription& model,
                       const LossCourse& course, bool goes_on) {
  const bool harmless =
      course.observed() > 0 && std::isfinite(course.last().value) &&
      (goes_on ? course.last().step >= first.step() : course.last().step > first.step());
  Alarm alarm;
  alarm.code = "not_finite";
  alarm.severity = harmless ? Severity::kWarning : Severity::kAlarm;
  alarm.title = "Numbers that are not finite";
  alarm.step = first.step();
  alarm.text = fmt::format(
      "First at step {}, in {}: {}. {}", first.step(), place_of(first, model),
      first.message().empty() ? first.code() : first.message(),
      harmless ? "The last loss is finite; if the step was not skipped, check the inputs to "
                 "this place."
               : "Anything computed from them afterwards is meaningless: lower the learning "
                 "rate, clip gradients, or check the inputs to this place.");
  return alarm;
}

std::optional<Alarm> losing_data_alarm(const v1::Health& health) {
  if (health.messages_dropped() == 0 && health.write_failures() == 0) return std::nullopt;
  Alarm alarm;
  alarm.code = "trace_incomplete";
  alarm.severity = Severity::kWarning;
  alarm.title = "The trace is losing data";
  alarm.step = health.step();
  alarm.value = static_cast<double>(health.messages_dropped());
  alarm.text = fmt::format(
      "{} messages were dropped, and {} writes failed{}. Training is not affected; missing data "
      "cannot be judged later.",
      health.messages_dropped(), health.write_failures(),
      health.last_write_failure().empty() ? "" : " (" + health.last_write_failure() + ")");
  return alarm;
}

}  // namespace tycho::analyzer
