#include "tycho/analyzer/finding_message.h"

namespace tycho::analyzer {
namespace {

v1::Finding::Verdict to_message(Verdict verdict) {
  switch (verdict) {
    case Verdict::kHolds:
      return v1::Finding::HOLDS;
    case Verdict::kViolated:
      return v1::Finding::VIOLATED;
    case Verdict::kNotApplicable:
      return v1::Finding::NOT_APPLICABLE;
    case Verdict::kUnderpowered:
      return v1::Finding::UNDERPOWERED;
    case Verdict::kNotYet:
      return v1::Finding::NOT_YET;
    case Verdict::kNotMeasured:
      return v1::Finding::NOT_MEASURED;
  }
  return v1::Finding::VERDICT_UNSPECIFIED;
}

Verdict from_message(v1::Finding::Verdict verdict) {
  switch (verdict) {
    case v1::Finding::HOLDS:
      return Verdict::kHolds;
    case v1::Finding::VIOLATED:
      return Verdict::kViolated;
    case v1::Finding::NOT_APPLICABLE:
      return Verdict::kNotApplicable;
    case v1::Finding::UNDERPOWERED:
      return Verdict::kUnderpowered;
    case v1::Finding::NOT_MEASURED:
      return Verdict::kNotMeasured;
    default:
      return Verdict::kNotYet;
  }
}

}  // namespace

v1::Finding to_message(const LiveFinding& finding) {
  v1::Finding message;
  message.set_step(finding.step);
  message.set_law(finding.law);
  message.set_scope(finding.scope);
  message.set_text(finding.gate);
  message.set_advice(finding.advice);
  message.set_measured(finding.measured);
  message.set_predicted(finding.predicted);
  message.set_ci_low(finding.ci_low);
  message.set_ci_high(finding.ci_high);
  message.set_window_begin(finding.window_begin);
  message.set_window_end(finding.window_end);
  if (finding.kind == LiveFinding::Kind::kVerdict) {
    message.set_kind(v1::Finding::VERDICT);
    message.set_verdict(to_message(finding.verdict));
    if (finding.before) message.set_before(to_message(*finding.before));
    return message;
  }
  message.set_kind(finding.is_alarm() ? v1::Finding::ALARM : v1::Finding::ALARM_OVER);
  message.set_severity(to_string(finding.severity));
  message.set_title(finding.title);
  return message;
}

LiveFinding from_message(const v1::Finding& message) {
  LiveFinding finding;
  finding.step = message.step();
  finding.law = message.law();
  finding.scope = message.scope();
  finding.gate = message.text();
  finding.advice = message.advice();
  finding.measured = message.measured();
  finding.predicted = message.predicted();
  finding.ci_low = message.ci_low();
  finding.ci_high = message.ci_high();
  finding.window_begin = message.window_begin();
  finding.window_end = message.window_end();
  if (message.kind() != v1::Finding::ALARM && message.kind() != v1::Finding::ALARM_OVER) {
    finding.verdict = from_message(message.verdict());
    if (message.before() != v1::Finding::VERDICT_UNSPECIFIED)
      finding.before = from_message(message.before());
    return finding;
  }
  const bool lasts = message.kind() == v1::Finding::ALARM;
  finding.kind = lasts ? LiveFinding::Kind::kAlarm : LiveFinding::Kind::kAlarmOver;
  finding.verdict = lasts ? Verdict::kViolated : Verdict::kNotYet;
  finding.severity = message.severity() == "alarm" ? Severity::kAlarm : Severity::kWarning;
  finding.title = message.title();
  finding.alarm = message.law();
  return finding;
}

}  // namespace tycho::analyzer
