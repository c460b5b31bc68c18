#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "coverage.h"
#include "happenings.h"
#include "incident_words.h"
#include "layer_names.h"
#include "remarks.h"
#include "report.h"
#include "src/incident/quantities.h"
#include "src/loss/held_out.h"
#include "src/loss/progress_end.h"
#include "src/report/json_parts.h"

namespace tycho::analyzer {
namespace {

using nlohmann::json;

template <typename Map>
json text_map(const Map& map) {
  json result = json::object();
  for (const auto& [key, value] : map) result[key] = value;
  return result;
}

json point(const LossPoint& at) {
  if (at.step < 0) return nullptr;
  return {{"step", at.step}, {"value", number(at.value)}};
}

json progress_json(const Report& report) {
  const auto known = remarks(report);
  const bool said = std::any_of(known.begin(), known.end(),
                                [](const Remark& each) { return each.code == "loss_at_floor"; });
  const auto end = said ? progress_end(report.loss) : std::nullopt;
  if (!end) return nullptr;
  return {{"step", end->step},
          {"earliest", end->earliest},
          {"steps_after", end->after},
          {"share_after", number(end->share())},
          {"fall_after", number(end->fall)},
          {"fall_low", number(end->low)},
          {"fall_high", number(end->high)},
          {"at_most", number(end->at_most)},
          {"level", number(end->level)}};
}

json difference_json(const Difference& difference) {
  if (!std::isfinite(difference.value)) return nullptr;
  return {{"value", number(difference.value)},
          {"low", number(difference.low)},
          {"high", number(difference.high)}};
}

json held_out_json(const LossCourse& course) {
  const auto seen = held_out(course);
  if (!seen) return nullptr;
  const auto& of = *seen;
  json best = nullptr;
  if (of.best.step >= 0) {
    best = {{"step", of.best.step},
            {"begin", of.best_begin},
            {"end", of.best_end},
            {"values", of.best_values},
            {"level", number(of.best_level)}};
  }
  const bool risen = of.course == HeldOut::Course::kRisen;
  const bool falls = of.course == HeldOut::Course::kFalling;
  const bool fell = of.training == HeldOut::Training::kFell;
  const bool rose = of.training == HeldOut::Training::kRose;
  return {{"values", of.values},
          {"not_finite", course.held_out().not_finite},
          {"lowest", point(of.lowest)},
          {"last", point(of.last)},
          {"course", risen   ? "risen"
                     : falls ? "falling"
                             : "not_told"},
          {"best", best},
          {"late_begin", of.late_begin < 0 ? json(nullptr) : json(of.late_begin)},
          {"late_level", number(of.late_level)},
          {"rise", difference_json(of.rise)},
          {"training", fell   ? "fell"
                       : rose ? "rose"
                              : "not_told"},
          {"training_change", difference_json(of.training_change)},
          {"fall", difference_json(of.fall)},
          {"gap", number(of.gap)}};
}

json loss_json(const LossCourse& course) {
  return {{"observed", course.observed()},    {"not_finite", course.not_finite()},
          {"first", point(course.first())},   {"last", point(course.last())},
          {"lowest", point(course.lowest())}, {"highest", point(course.highest())}};
}

json coverage_json(const Coverage& seen) {
  json untested = json::array();
  for (const Untested& each : seen.untested)
    untested.push_back({{"reason", each.reason}, {"laws", each.laws}});
  json deferred = json::array();
  for (const Deferred& each : seen.deferred)
    deferred.push_back({{"statistic", each.statistic}, {"laws", each.laws}});
  return {
      {"laws", seen.laws},         {"tested", seen.tested}, {"not_applicable", seen.not_applicable},
      {"violated", seen.violated}, {"untested", untested},  {"deferred", deferred}};
}

json happenings_json(const Report& report) {
  json result = json::array();
  for (const Happening& each : happenings(report)) {
    result.push_back({{"kind", v1::Event::Kind_Name(each.kind)},
                      {"what", each.what},
                      {"modules", each.modules},
                      {"parameters", each.parameters},
                      {"what_to_do", each.remedy},
                      {"first_step", each.first_step},
                      {"times", each.times}});
  }
  return result;
}

json step_json(int64_t step) { return step < 0 ? json(nullptr) : json(step); }

json mover_json(const Report& report, const Mover& mover) {
  const Quantity& quantity = watched_quantities()[mover.quantity];
  const Movement& movement = mover.movement;
  return {{"step", movement.moved},
          {"within_at", step_json(movement.within)},
          {"quantity", quantity.id},
          {"statistic", quantity.statistic},
          {"scope", scope_of(report, mover)},
          {"usual", number(from_scale(quantity, movement.usual))},
          {"value", number(from_scale(quantity, movement.value))},
          {"finite", movement.finite()},
          {"spreads", number(movement.spreads())}};
}

json incidents_json(const Report& report) {
  constexpr size_t kMost = 200;
  json result = json::array();
  for (const Incident& each : report.incidents) {
    json moved = json::array();
    for (size_t i = 0; i < each.movers.size() && i < kMost; ++i)
      moved.push_back(mover_json(report, each.movers[i]));
    const IncidentWords words = describe(report, each);
    result.push_back({{"code", each.code},
                      {"step", each.step},
                      {"finite", each.finite},
                      {"order", to_string(each.order())},
                      {"text", words.sentences},
                      {"before", each.from},
                      {"series_compared", each.compared},
                      {"series_too_few", each.too_few},
                      {"series_moved", each.movers.size()},
                      {"moved", moved}});
  }
  return result;
}

}  // namespace

std::string json_report(const Report& report) {
  json lost = {{"messages_dropped", report.health.messages_dropped()},
               {"write_failures", report.health.write_failures()},
               {"skipped", json::array()}};
  uint64_t bytes = 0;
  for (const auto& region : report.skipped) {
    bytes += region.end - region.begin;
    lost["skipped"].push_back({{"segment", region.segment},
                               {"begin", region.begin},
                               {"end", region.end},
                               {"why", region.why},
                               {"after_step", region.after_step},
                               {"before_step", region.before_step},
                               {"messages", region.messages}});
  }
  lost["bytes_skipped"] = bytes;
  lost["losses"] = trace::losses(report.segments, report.skipped);
  json run = {
      {"id", report.run.run_id()},
      {"name", report.run.run_name()},
      {"tags", std::vector<std::string>(report.run.tags().begin(), report.run.tags().end())},
      {"optimizer", report.run.optimizer()},
      {"seed", report.run.seed()},
      {"start_time_ns", report.run.start_time_ns()},
      {"command_line", std::vector<std::string>(report.run.command_line().begin(),
                                                report.run.command_line().end())},
      {"configuration", text_map(report.run.options())},
      {"versions", text_map(report.run.versions())},
      {"environment", text_map(report.run.environment())},
      {"first_step", report.first_step},
      {"last_step", report.last_step},
      {"observed_steps", report.frames},
      {"lost", lost}};
  json events = json::array();
  for (const v1::Event& event : report.events) {
    events.push_back({{"step", event.step()},
                      {"kind", v1::Event::Kind_Name(event.kind())},
                      {"code", event.code()},
                      {"message", event.message()},
                      {"count", event.count()}});
  }
  run["events"] = events;
  json cost = json::object();
  for (const auto& probe : report.health.cost()) cost[probe.probe()] = number(probe.seconds());
  run["cost"] = {{"tycho_seconds", number(report.health.tycho_seconds())},
                 {"training_seconds", number(report.health.training_seconds())},
                 {"tycho_cpu_seconds", number(report.health.tycho_cpu_seconds())},
                 {"process_cpu_seconds", number(report.health.process_cpu_seconds())},
                 {"lower_bound", report.health.cost_is_lower_bound()},
                 {"probes", cost}};
  json known = json::array();
  for (const Remark& remark : remarks(report)) {
    known.push_back({{"code", remark.code},
                     {"severity", to_string(remark.severity)},
                     {"title", remark.title},
                     {"text", remark.text},
                     {"step", remark.step < 0 ? json(nullptr) : json(remark.step)},
                     {"value", number(remark.value)},
                     {"statistic", remark.statistic},
                     {"scope", remark.scope}});
  }
  json decided = json::array();
  for (const Decision& each : report.decisions) {
    decided.push_back({{"code", each.code},
                       {"title", each.title},
                       {"because", each.because},
                       {"expect", each.expect},
                       {"refuted_by", each.refuted_by},
                       {"severity", to_string(each.severity)},
                       {"gain", each.gain},
                       {"laws", each.laws},
                       {"setting", each.setting},
                       {"factor", number(each.factor)},
                       {"step", each.step < 0 ? json(nullptr) : json(each.step)},
                       {"statistic", each.statistic},
                       {"scope", each.scope}});
  }
  json laws = json::array();
  json known_since = json::array();
  for (const Finding& finding : report.findings) {
    laws.push_back(finding_json(finding));
    if (const auto step = report.verdict_times.since(finding)) {
      known_since.push_back({{"law", finding.law},
                             {"scope", finding.scope},
                             {"verdict", to_string(finding.verdict)},
                             {"step", *step}});
    }
  }
  // Names come from the user's program and need not be UTF-8.
  json layers = json::array();
  for (const v1::Layer& layer : report.model.layer()) {
    json parameters = json::array();
    for (const uint32_t id : layer.parameter()) {
      if (id < static_cast<uint32_t>(report.model.parameter_size()))
        parameters.push_back(report.model.parameter(static_cast<int>(id)).name());
    }
    layers.push_back({{"path", layer.path()},
                      {"kind", layer_kind(report.model, layer)},
                      {"parameters", std::move(parameters)}});
  }
  return json{{"schema", "tycho-report-1"},
              {"run", run},
              {"layers", layers},
              {"in_short", in_short(report)},
              {"loss", loss_json(report.loss)},
              {"progress_end", progress_json(report)},
              {"held_out", held_out_json(report.loss)},
              {"incidents", incidents_json(report)},
              {"decisions", decided},
              {"remarks", known},
              {"coverage", coverage_json(coverage(report))},
              {"happenings", happenings_json(report)},
              {"known_since", known_since},
              {"laws", laws}}
             .dump(2, ' ', true, json::error_handler_t::replace) +
         "\n";
}

}  // namespace tycho::analyzer
