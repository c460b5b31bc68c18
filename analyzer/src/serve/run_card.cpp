#include "run_card.h"

#include <algorithm>
#include <filesystem>

#include "src/report/coverage.h"
#include "src/report/json_parts.h"
#include "tycho/trace/file_system.h"

namespace tycho::analyzer {

using nlohmann::json;

int RunCard::count(Verdict verdict) const {
  return static_cast<int>(std::count_if(laws.begin(), laws.end(),
                                        [&](const auto& law) { return law.second == verdict; }));
}

int RunCard::count(Severity severity) const {
  return static_cast<int>(std::count_if(remarks.begin(), remarks.end(), [&](const Remark& remark) {
    return remark.severity == severity;
  }));
}

RunCard make_card(const FollowedRun& run) {
  const Report& report = run.report();
  RunCard card;
  card.title = report.run.run_name();
  card.optimizer = report.run.optimizer();
  card.start_time_ns = report.run.start_time_ns();
  card.state = run.state();
  card.why = run.why();
  if (run.two_writers()) {
    card.why += card.why.empty() ? "" : "; ";
    card.why += "two sessions write to this run; the newer one is followed";
  }
  card.is_read = true;
  card.step = run.last_step();
  card.steps_per_second = run.steps_per_second();
  card.has_loss = report.loss.observed() > 0;
  card.loss = report.loss.last().value;
  card.lowest_loss = report.loss.lowest().value;
  if (report.health.training_seconds() > 0)
    card.cost = report.health.tycho_seconds() / report.health.training_seconds();
  card.last_time_ns = run.last_time_ns();
  if (report.frames > 0) {
    for (const LawDescription& law : report.laws)
      card.laws.emplace_back(law.id, summary_verdict(report, law));
  }
  card.remarks = run.remarks();
  return card;
}

RunCard glance(const std::string& directory) {
  RunCard card;
  const auto names = trace::list_segments(directory);
  if (!names.ok() || names.value().empty()) return card;
  const auto reader =
      trace::RunReader::open((std::filesystem::path(directory) / names.value().back()).string());
  if (!reader.ok()) {
    card.state = trace::RunState::kUnreadable;
    card.why = reader.status().message();
    return card;
  }
  const v1::RunDescription& run = reader.value()->run();
  const trace::SegmentInfo& last = reader.value()->segments().back();
  card.title = run.run_name();
  card.optimizer = run.optimizer();
  card.start_time_ns = run.start_time_ns();
  card.state = last.sealed          ? trace::RunState::kFinished
               : last.being_written ? trace::RunState::kLive
                                    : trace::RunState::kDied;
  return card;
}

bool looks_the_same(const RunCard& a, const RunCard& b) { return card_json(a) == card_json(b); }

json card_json(const RunCard& card) {
  json laws = json::object();
  for (const auto& [law, verdict] : card.laws) laws[law] = to_string(verdict);
  json alarms = json::array();
  for (const Remark& remark : card.remarks) {
    alarms.push_back({{"code", remark.code},
                      {"severity", to_string(remark.severity)},
                      {"title", remark.title},
                      {"step", remark.step < 0 ? json(nullptr) : json(remark.step)}});
  }
  return {{"name", card.name},
          {"title", card.title},
          {"optimizer", card.optimizer},
          {"start_seconds", static_cast<double>(card.start_time_ns) * 1e-9},
          {"state", to_string(card.state)},
          {"why", card.why},
          {"is_read", card.is_read},
          {"step", card.step < 0 ? json(nullptr) : json(card.step)},
          {"steps_per_second", number(card.steps_per_second)},
          {"has_loss", card.has_loss},
          {"loss", number(card.loss)},
          {"lowest_loss", number(card.lowest_loss)},
          {"cost", number(card.cost)},
          {"last_seconds", card.last_time_ns == 0
                               ? json(nullptr)
                               : json(static_cast<double>(card.last_time_ns) * 1e-9)},
          {"laws", laws},
          {"alarms", alarms}};
}

}  // namespace tycho::analyzer
