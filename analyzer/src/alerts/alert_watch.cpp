#include "alert_watch.h"

#include <utility>

namespace tycho::analyzer {
namespace {

Alert about(const FollowedRun& run) {
  const Report& report = run.report();
  Alert alert;
  alert.run = report.run.run_name().empty() ? report.path : report.run.run_name();
  alert.path = report.path;
  alert.id = report.run.run_id();
  alert.state = to_string(run.state());
  alert.last_step = run.last_step();
  alert.loss = report.loss.last().value;
  return alert;
}

}  // namespace

std::vector<Alert> AlertWatch::look(const FollowedRun& run) {
  std::vector<Alert> news;
  std::map<std::pair<std::string, std::string>, Severity> raised;
  const auto raise = [&](Alert alert) {
    if (alert.severity > from_) return;
    const std::pair<std::string, std::string> key{alert.code, alert.scope};
    const auto before = raised_.find(key);
    const bool is_news = before == raised_.end() || alert.severity < before->second;
    const auto [now, added] = raised.emplace(key, alert.severity);
    if (!added) return;
    if (is_news) news.push_back(std::move(alert));
  };
  const bool is_live = run.state() == trace::RunState::kLive;
  tells_ = tells_ || is_live;
  was_live_ = was_live_ || is_live;
  if (was_live_ && run.state() == trace::RunState::kDied) {
    Alert died = about(run);
    died.code = "run_died";
    died.severity = Severity::kAlarm;
    died.title = "The writer died";
    died.text = "The run was not closed, and no process writes to it any more.";
    if (!run.why().empty()) died.text += " " + run.why();
    died.step = run.last_step();
    raise(std::move(died));
  }
  for (const Remark& remark : run.remarks()) {
    Alert alert = about(run);
    alert.code = remark.code;
    alert.severity = remark.severity;
    alert.title = remark.title;
    alert.text = remark.text;
    alert.scope = remark.scope.empty() ? "run" : remark.scope;
    alert.step = remark.step;
    alert.value = remark.value;
    raise(std::move(alert));
  }
  raised_ = std::move(raised);
  if (!tells_) news.clear();
  return news;
}

}  // namespace tycho::analyzer
