#include "watch_lines.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/printable.h"
#include "src/report/coverage.h"
#include "src/report/json_parts.h"

namespace tycho::analyzer {

using nlohmann::json;

std::vector<std::string> WatchLines::look(const FollowedRun& run,
                                          const std::vector<VerdictChange>& changes) {
  std::vector<std::string> lines;
  const auto at = [&](int64_t step) { return step < 0 ? "" : fmt::format("step {}: ", step); };
  if (run.restarts() != restarts_) {
    restarts_ = run.restarts();
    lines.push_back("read again from the beginning: what was read before was replaced");
  }
  if (run.two_writers() && !two_writers_)
    lines.push_back("two sessions write to this run; the newer one is followed");
  two_writers_ = run.two_writers();
  for (const VerdictChange& change : changes) lines.push_back(at(change.step) + to_text(change));
  std::map<std::string, std::string> alarms;
  for (const Remark& remark : run.remarks()) {
    const std::string what =
        std::string(to_string(remark.severity)) + ": " + printable(remark.title);
    const auto known = alarms_.find(remark.code);
    if (known == alarms_.end() || known->second != what)
      lines.push_back(at(remark.step) + what + ": " + printable(remark.text) + " [" +
                      printable(remark.code) + "]");
    alarms[remark.code] = what;
  }
  for (const auto& [code, what] : alarms_) {
    if (alarms.count(code) == 0)
      lines.push_back(at(run.last_step()) + "no longer: " + what + " [" + printable(code) + "]");
  }
  alarms_ = std::move(alarms);
  if (state_ != run.state()) {
    state_ = run.state();
    const std::string is = run.state() == trace::RunState::kDied
                               ? "the writer died"
                               : std::string("the run is ") + to_string(run.state());
    lines.push_back(at(run.last_step()) + is +
                    (run.why().empty() ? "" : ": " + printable(run.why())));
  }
  return lines;
}

std::string watch_json(const FollowedRun& run, const std::vector<VerdictChange>& changes,
                       int64_t now_ns, bool all_findings) {
  const Report& report = run.report();
  json alarms = json::array();
  for (const Remark& remark : run.remarks()) {
    alarms.push_back({{"code", remark.code},
                      {"severity", to_string(remark.severity)},
                      {"title", remark.title},
                      {"text", remark.text},
                      {"step", remark.step < 0 ? json(nullptr) : json(remark.step)},
                      {"value", number(remark.value)}});
  }
  json verdicts = json::object();
  if (report.frames > 0) {
    for (const LawDescription& law : report.laws)
      verdicts[law.id] = to_string(summary_verdict(report, law));
  }
  json changed = json::array();
  for (const VerdictChange& change : changes) {
    changed.push_back({{"step", change.step},
                       {"law", change.law},
                       {"from", change.from ? json(to_string(*change.from)) : json(nullptr)},
                       {"to", to_string(change.to)},
                       {"scopes", change.scopes}});
  }
  const double training = report.health.training_seconds();
  json object = {
      {"path", report.path},
      {"name", report.run.run_name()},
      {"id", report.run.run_id()},
      {"state", to_string(run.state())},
      {"why", run.why()},
      {"step", run.last_step() < 0 ? json(nullptr) : json(run.last_step())},
      {"observed_steps", report.frames},
      {"steps_per_second", number(run.steps_per_second())},
      {"loss", number(report.loss.last().value)},
      {"lowest_loss", number(report.loss.lowest().value)},
      {"cost", number(training > 0 ? report.health.tycho_seconds() / training : kUnknown)},
      {"lag_seconds",
       run.state() == trace::RunState::kLive && run.last_time_ns() > 0
           ? number((static_cast<double>(now_ns) - static_cast<double>(run.last_time_ns())) * 1e-9)
           : json(nullptr)},
      {"alarms", alarms},
      {"verdicts", verdicts},
      {"changes", changed}};
  if (all_findings) {
    object["laws"] = json::array();
    for (const Finding& finding : report.findings) object["laws"].push_back(finding_json(finding));
  }
  // Names come from the user's program and need not be UTF-8.
  return object.dump(-1, ' ', true, json::error_handler_t::replace);
}

}  // namespace tycho::analyzer
