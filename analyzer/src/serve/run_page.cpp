#include "run_page.h"

#include <algorithm>
#include <array>

#include "src/report/html_sections.h"

namespace tycho::analyzer {

using nlohmann::json;

namespace {

constexpr std::array<const char*, 5> kArrays = {"mean", "min", "max", "half_width", "not_finite"};

// From where on the arrays of two entities differ: both are filled from the left, and what stands
// there stays, but for the last one, until stretches are joined.
json entity_changes(const json& before, const json& after) {
  json changes = json::object();
  for (const char* key : kArrays) {
    const auto now = after.find(key);
    if (now == after.end()) {
      if (before.contains(key)) changes[key] = nullptr;
      continue;
    }
    const auto then = before.find(key);
    size_t same = 0;
    if (then != before.end()) {
      const size_t most = std::min(then->size(), now->size());
      while (same < most && (*then)[same] == (*now)[same]) ++same;
      if (same == then->size() && same == now->size()) continue;
    }
    json tail = json::array();
    for (size_t i = same; i < now->size(); ++i) tail.push_back((*now)[i]);
    changes[key] = {{"from", same}, {"values", std::move(tail)}};
  }
  return changes;
}

bool same_series(const json& before, const json& after) {
  if (before.size() != after.size()) return false;
  for (size_t i = 0; i < before.size(); ++i) {
    if (before[i]["statistic"] != after[i]["statistic"] ||
        before[i]["scope"] != after[i]["scope"] ||
        before[i]["entities"].size() != after[i]["entities"].size() ||
        before[i].contains("rest") != after[i].contains("rest"))
      return false;
    // Which layers stand out may change; the others are sent again when anything of them has.
    if (after[i].contains("rest") && before[i]["rest"]["of"] != after[i]["rest"]["of"])
      return false;
    for (size_t k = 0; k < before[i]["entities"].size(); ++k) {
      if (before[i]["entities"][k]["scope"] != after[i]["entities"][k]["scope"]) return false;
    }
  }
  return true;
}

json view_changes(const json& before, const json& after) {
  json changes = json::object();
  for (const auto& [key, value] : after.items()) {
    if (key != "series" && before[key] != value) changes[key] = value;
  }
  json series = json::array();
  for (size_t i = 0; i < after["series"].size(); ++i) {
    const json& then = before["series"][i]["entities"];
    const json& now = after["series"][i]["entities"];
    json entities = json::object();
    for (size_t k = 0; k < now.size(); ++k) {
      json entity = entity_changes(then[k], now[k]);
      if (!entity.empty()) entities[std::to_string(k)] = std::move(entity);
    }
    json part = json::object();
    if (!entities.empty()) part["entities"] = std::move(entities);
    if (const auto rest = after["series"][i].find("rest");
        rest != after["series"][i].end() && before["series"][i]["rest"] != *rest)
      part["rest"] = *rest;
    if (part.empty()) continue;
    part["index"] = i;
    series.push_back(std::move(part));
  }
  if (!series.empty()) changes["series"] = std::move(series);
  return changes;
}

}  // namespace

std::vector<std::string> split_main(const std::string& html) {
  std::vector<std::string> parts;
  const std::string begin = "<main>";
  size_t at = html.find(begin);
  const size_t end = html.find("</main>", at == std::string::npos ? 0 : at);
  if (at == std::string::npos || end == std::string::npos) return parts;
  at += begin.size();
  // Elements of <main> begin with these; none of them stands inside another of its kind but
  // details, which begin a part only behind the end of one.
  constexpr std::array<std::pair<const char*, const char*>, 3> kElements = {
      {{"<header", "</header>"}, {"<section", "</section>"}, {"<details", "</details>"}}};
  while (at < end) {
    size_t first = std::string::npos;
    const char* close = nullptr;
    for (const auto& [opening, closing] : kElements) {
      const size_t found = html.find(opening, at);
      if (found >= first) continue;
      first = found;
      close = closing;
    }
    if (first == std::string::npos || first >= end) break;
    const size_t closed = html.find(close, first);
    if (closed == std::string::npos || closed >= end) break;
    const size_t after = closed + std::char_traits<char>::length(close);
    parts.push_back(html.substr(first, after - first));
    at = after;
  }
  return parts;
}

RunPage make_page(const Report& report) {
  RunPage page;
  page.html = html_report(report);
  page.parts = split_main(page.html);
  page.view = view_data(report);
  page.json = json_report(report);
  return page;
}

json page_changes(const RunPage* before, const RunPage& after) {
  json changes = {{"version", after.version}, {"count", after.parts.size()}};
  // With other sections they are put where they belong, and with other series or layers the charts
  // are made anew.
  const bool all_parts = before == nullptr || before->parts.size() != after.parts.size();
  const bool all_series =
      before == nullptr || !same_series(before->view["series"], after.view["series"]);
  json parts = json::object();
  for (size_t i = 0; i < after.parts.size(); ++i) {
    if (all_parts || before->parts[i] != after.parts[i]) parts[std::to_string(i)] = after.parts[i];
  }
  const bool same_parts = parts.empty();
  if (!same_parts) changes["parts"] = std::move(parts);
  if (all_series) {
    changes["data"] = after.view;
    return changes;
  }
  json view = view_changes(before->view, after.view);
  if (view.empty() && same_parts) return nullptr;
  if (!view.empty()) changes["view"] = std::move(view);
  return changes;
}

}  // namespace tycho::analyzer
