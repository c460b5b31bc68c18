#include "remarks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "coverage.h"
#include "happenings.h"
#include "src/live/alarm_texts.h"
#include "src/loss/held_out_alarms.h"

namespace tycho::analyzer {
namespace {

Remark remark_of(const Alarm& alarm) {
  return {alarm.code, alarm.severity, alarm.title, alarm.text, alarm.step, alarm.value, "", ""};
}

const Finding* of_run(const Report& report, const char* law) {
  const auto found =
      std::find_if(report.findings.begin(), report.findings.end(),
                   [&](const Finding& each) { return each.law == law && each.scope == "run"; });
  return found == report.findings.end() ? nullptr : &*found;
}

/// A forecast that holds has seen the loss move over the last part of the run.
bool is_forecast_to_fall(const Report& report) {
  const Finding* forecast = of_run(report, "loss_forecast");
  return forecast != nullptr && forecast->verdict == Verdict::kHolds;
}

/// A loss that rests at this learning rate may fall at a lower one.
std::string of_a_lower_rate(const Report& report) {
  const Finding* gain = of_run(report, "decay_gain");
  if (gain == nullptr || gain->verdict != Verdict::kNotYet || !(gain->ci_low > 0)) return "";
  return fmt::format(
      " This holds at this learning rate: {} [{}, {}] of the loss is the noise of steps this "
      "long, which lowering the rate before the end should gain.",
      short_number(gain->measured), short_number(gain->ci_low), short_number(gain->ci_high));
}

void loss(const Report& report, std::vector<Remark>* result) {
  for (const LossAlarm& alarm : loss_alarms(report.loss)) {
    const bool floor = alarm.code == "loss_at_floor";
    if (floor && is_forecast_to_fall(report)) continue;
    const bool held_out = alarm.code == "overfitting" || alarm.code == "held_out_rose" ||
                          alarm.code == "held_out_falls";
    result->push_back({alarm.code, alarm.severity, alarm.title,
                       floor ? alarm.text + of_a_lower_rate(report) : alarm.text, alarm.at.step,
                       alarm.at.value, held_out ? "validation_loss" : "loss", "run"});
  }
  if (report.frames > 0 && report.loss.observed() == 0) {
    result->push_back({"loss_not_recorded", Severity::kWarning, "The loss was not recorded",
                       "It is not known whether this run learns. Pass the loss to "
                       "Session::step, and do not leave out the probe \"loss\".",
                       -1, kUnknown, "", ""});
  }
}

void non_finite(const Report& report, std::vector<Remark>* result) {
  const v1::Event* first = nullptr;
  for (const v1::Event& event : report.events) {
    if (event.kind() != v1::Event::NON_FINITE) continue;
    if (first == nullptr || event.step() < first->step()) first = &event;
  }
  if (first == nullptr) return;
  const bool goes_on =
      std::any_of(report.segments.begin(), report.segments.end(),
                  [](const trace::SegmentInfo& segment) { return segment.being_written; });
  result->push_back(remark_of(not_finite_alarm(*first, report.model, report.loss, goes_on)));
}

struct Silent {
  double least = 0;  ///< share of units that were silent, at the step where it was smallest
  uint64_t steps = 0;
};

/// Over the second half of what was observed.
Silent silent_units(const Report& report, size_t layer) {
  Silent result;
  const auto buckets = report.series.series({"dead_fraction", v1::SCOPE_LAYER}, layer);
  for (size_t b = buckets.size() / 2; b < buckets.size(); ++b) {
    if (buckets[b].count == 0) continue;
    result.least = result.steps == 0 ? buckets[b].min : std::min(result.least, buckets[b].min);
    result.steps += buckets[b].count;
  }
  return result;
}

// A unit that fires for few examples is silent in many batches: what counts is the step where the
// fewest were, over many steps.
void dead_units(const Report& report, std::vector<Remark>* result) {
  constexpr double kMany = 0.3;
  constexpr uint64_t kFewestSteps = 20;
  Silent worst;
  size_t layer = 0;
  int layers = 0;
  for (int i = 0; i < report.model.layer_size(); ++i) {
    const Silent seen = silent_units(report, static_cast<size_t>(i));
    if (seen.steps < kFewestSteps || seen.least <= kMany) continue;
    ++layers;
    if (seen.least <= worst.least) continue;
    worst = seen;
    layer = static_cast<size_t>(i);
  }
  if (layers == 0) return;
  Remark remark;
  remark.code = "dead_units";
  remark.title = "Units that stay silent";
  remark.value = worst.least;
  remark.statistic = "dead_fraction";
  remark.scope = "layer:" + report.model.layer(static_cast<int>(layer)).path();
  remark.text = fmt::format(
      "In each of the last {} observed steps, {:.0f} % or more of the units of {} were not "
      "above zero for any example of the batch and received no gradient{}. Units that are "
      "silent at every step learn nothing: a lower learning rate or a leaky activation keeps "
      "them alive.",
      worst.steps, std::floor(100 * worst.least), report.layer_label(static_cast<uint32_t>(layer)),
      layers > 1 ? fmt::format("; {} other {} more than {:.0f} %", layers - 1,
                               layers == 2 ? "layer has" : "layers have", 100 * kMany)
                 : "");
  result->push_back(std::move(remark));
}

void failures(const Report& report, std::vector<Remark>* result) {
  std::vector<Happening> failed;
  for (Happening& each : happenings(report)) {
    if (each.kind == v1::Event::FAULT) failed.push_back(std::move(each));
  }
  if (failed.empty()) return;
  Remark remark;
  remark.code = "instrument_failed";
  remark.title = "Part of Tycho failed";
  remark.step = failed.front().first_step;
  remark.text = fmt::format("At step {}: {}", failed.front().first_step, failed.front().what);
  if (failed.size() > 1)
    remark.text += fmt::format("; and {} more, listed below", failed.size() - 1);
  remark.text += ". Training was not affected; its measurements are missing from there on.";
  result->push_back(std::move(remark));
}

void losses(const Report& report, std::vector<Remark>* result) {
  if (!report.has_loss()) return;
  const bool died =
      std::any_of(report.segments.begin(), report.segments.end(),
                  [](const trace::SegmentInfo& segment) { return segment.at_risk_seconds > 0; });
  const auto losing = losing_data_alarm(report.health);
  if (losing && report.skipped.empty() && !died) return result->push_back(remark_of(*losing));
  uint64_t bytes = 0;
  for (const auto& region : report.skipped) bytes += region.end - region.begin;
  Remark remark;
  remark.code = "trace_incomplete";
  remark.title = "The trace is not complete";
  std::string writer;
  for (const trace::SegmentInfo& segment : report.segments) {
    if (segment.at_risk_seconds <= 0) continue;
    writer = fmt::format("The writer died: up to {:g} s of steps before its end may be missing. ",
                         segment.at_risk_seconds);
  }
  remark.text = fmt::format(
      "{}{} bytes could not be read and {} messages were dropped while the trace was written; "
      "everything else was used. See \"What was lost\" below.",
      writer, bytes, report.health.messages_dropped());
  result->push_back(std::move(remark));
}

bool is_sealed(const Report& report) {
  return std::all_of(report.segments.begin(), report.segments.end(),
                     [](const trace::SegmentInfo& segment) { return segment.sealed; });
}

}  // namespace

std::vector<Remark> remarks(const Report& report) {
  std::vector<Remark> result;
  loss(report, &result);
  non_finite(report, &result);
  dead_units(report, &result);
  failures(report, &result);
  losses(report, &result);
  // A floor that a fault keeps the loss at is none to stop at.
  if (std::any_of(report.decisions.begin(), report.decisions.end(), [](const Decision& each) {
        return each.severity != Severity::kNote && each.code != "overfitting";
      })) {
    result.erase(std::remove_if(result.begin(), result.end(),
                                [](const Remark& each) { return each.code == "loss_at_floor"; }),
                 result.end());
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const Remark& a, const Remark& b) { return a.severity < b.severity; });
  return result;
}

std::vector<Remark> without_decided(std::vector<Remark> remarks, const Report& report) {
  const auto decided = [&](const Remark& remark) {
    return std::any_of(report.decisions.begin(), report.decisions.end(),
                       [&](const Decision& decision) { return decision.code == remark.code; });
  };
  remarks.erase(std::remove_if(remarks.begin(), remarks.end(), decided), remarks.end());
  return remarks;
}

bool is_broken(const std::vector<Remark>& remarks) {
  return std::any_of(remarks.begin(), remarks.end(),
                     [](const Remark& remark) { return remark.severity == Severity::kAlarm; });
}

std::string no_known_loss(const Report& report) {
  if (is_sealed(report)) return "Nothing that was recorded is missing.";
  return "The run is still being written. Nothing that was recorded so far is missing.";
}

std::vector<std::string> in_short(const Report& report) {
  std::vector<std::string> result;
  if (report.frames == 0) {
    result.push_back("No step was observed.");
  } else {
    std::string steps = describe_loss(report.loss);
    if (report.health.steps_seen() > report.frames)
      steps +=
          fmt::format(" {} of {} steps were observed.", report.frames, report.health.steps_seen());
    if (!steps.empty()) result.push_back(steps);
    if (std::string text = describe_held_out(report.loss); !text.empty())
      result.push_back(std::move(text));
    result.push_back(laws_sentence(report));
  }
  for (const std::string& loss : trace::losses(report.segments, report.skipped))
    result.push_back(loss);
  if (!report.has_loss() && !is_sealed(report)) result.push_back(no_known_loss(report));
  size_t not_observed = 0;
  for (const Happening& each : happenings(report))
    not_observed += each.kind == v1::Event::NOT_OBSERVED;
  if (not_observed > 0) {
    result.push_back(
        fmt::format("Some statistics could not be observed, for {} {}: see \"What was not "
                    "observed\".",
                    not_observed, not_observed == 1 ? "reason" : "reasons"));
  }
  return result;
}

}  // namespace tycho::analyzer
