#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>
#include <map>

#include "cost_text.h"
#include "happenings.h"
#include "html_sections.h"
#include "remarks.h"
#include "src/page/html_parts.h"

namespace tycho::analyzer {
namespace {

template <typename Map>
std::string map_rows(const Map& map) {
  const std::map<std::string, std::string> sorted(map.begin(), map.end());
  std::string out;
  for (const auto& [key, value] : sorted) {
    out +=
        fmt::format("<tr><td>{}</td><td class=\"name\">{}</td></tr>\n", escape(key), escape(value));
  }
  return out;
}

}  // namespace

std::string identity_section(const Report& report) {
  std::string command;
  for (const std::string& argument : report.run.command_line()) command += argument + " ";
  const std::time_t start = static_cast<std::time_t>(report.run.start_time_ns() / 1000000000);
  std::string out = "<section id=\"run\"><h2>The run</h2><table><tbody>\n";
  std::map<std::string, std::string> facts = {
      {"run", report.run.run_id()},
      {"name", report.run.run_name()},
      {"command line", command},
      {"optimizer", report.run.optimizer()},
      {"loss reduction", report.run.loss_reduction()},
      {"started", fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(start))}};
  for (auto fact = facts.begin(); fact != facts.end();)
    fact = fact->second.empty() ? facts.erase(fact) : std::next(fact);
  out += map_rows(facts) + "</tbody></table>\n";
  const auto part = [&](const char* name, const auto& map) {
    if (map.empty()) return;
    out += fmt::format("<details><summary>{}</summary><table><tbody>{}</tbody></table></details>\n",
                       name, map_rows(map));
  };
  part("Configuration", report.run.options());
  part("Versions", report.run.versions());
  part("Environment", report.run.environment());
  out += fmt::format(
      "<details><summary>{}, {} bytes</summary><table><thead><tr><th>segment</th><th>steps</th>"
      "<th>messages</th><th>bytes</th><th>sealed</th></tr></thead><tbody>",
      report.segments.size() == 1 ? std::string("1 segment")
                                  : fmt::format("{} segments", report.segments.size()),
      report.bytes);
  for (const auto& segment : report.segments) {
    out += fmt::format(
        "<tr><td>{}</td><td class=\"number\">{} to {}</td><td class=\"number\">{}</td><td "
        "class=\"number\">{}</td><td>{}</td></tr>\n",
        escape(segment.name), segment.first_step, segment.last_step, segment.messages,
        segment.bytes, segment.sealed ? "yes" : "no");
  }
  return out + "</tbody></table></details></section>\n";
}

std::string lost_section(const Report& report) {
  std::string out = "<section id=\"lost\"><h2>What was lost</h2>\n";
  if (!report.has_loss()) out += "<p>" + escape(no_known_loss(report)) + "</p>\n";
  if (report.health.messages_dropped() > 0) {
    out += fmt::format("<p>{} messages were dropped because the disk could not keep up.</p>\n",
                       report.health.messages_dropped());
  }
  if (report.health.write_failures() > 0) {
    out += fmt::format("<p>Writing failed {} times; the last failure: {}</p>\n",
                       report.health.write_failures(), escape(report.health.last_write_failure()));
  }
  if (!report.skipped.empty()) {
    out +=
        "<table><thead><tr><th>segment</th><th>bytes</th><th>between "
        "steps</th><th>why</th></tr></thead><tbody>\n";
    for (const auto& region : report.skipped) {
      out += fmt::format(
          "<tr><td>{}</td><td class=\"number\">{} to {}</td><td class=\"number\">{} and "
          "{}</td><td>{}</td></tr>\n",
          escape(region.segment), region.begin, region.end,
          region.after_step < 0 ? "the beginning" : std::to_string(region.after_step),
          region.before_step < 0 ? "the end" : std::to_string(region.before_step),
          escape(region.why));
    }
    out += "</tbody></table>\n";
  }
  return out + "</section>\n";
}

std::string happenings_section(const Report& report) {
  constexpr size_t kMostModules = 12;
  std::string out;
  for (const HappeningGroup& group : happening_groups(report)) {
    out += fmt::format(
        "<section><h2>{}</h2>\n<table><thead><tr><th>first step</th><th>times</th>"
        "<th>what</th><th>where</th></tr></thead><tbody>\n",
        group.title);
    for (const Happening& each : group.happenings) {
      out += fmt::format(
          "<tr><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}{}</td><td "
          "class=\"name\">{}</td></tr>\n",
          each.first_step, each.times, escape(each.what),
          each.remedy.empty() ? "" : "<br><b>What to do</b> " + escape(each.remedy),
          escape(where(each, kMostModules)));
    }
    out += "</tbody></table></section>\n";
  }
  return out;
}

std::string cost_section(const Report& report) {
  std::string out = "<section id=\"cost\"><h2>What Tycho cost</h2>\n";
  out += fmt::format("<p>{} {} of {} steps were observed.</p>\n", escape(cost_text(report.health)),
                     report.health.steps_observed(), report.health.steps_seen());
  if (report.health.cost_size() > 0) {
    out +=
        "<table><thead><tr><th>probe</th><th>wall time in seconds, including "
        "hooks</th><th>observations</th></tr></thead><tbody>\n";
    for (const auto& cost : report.health.cost()) {
      out += fmt::format(
          "<tr><td>{}</td><td class=\"number\">{:.4g}</td><td class=\"number\">{}</td></tr>\n",
          escape(cost.probe()), cost.seconds(), cost.observations());
    }
    out += "</tbody></table>\n";
  }
  return out + "</section>\n";
}

}  // namespace tycho::analyzer
