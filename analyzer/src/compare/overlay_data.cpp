#include "src/compare/overlay_data.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "src/page/html_parts.h"

namespace tycho::analyzer {

using nlohmann::json;

namespace {

/// Points of a page's curves, all together: more would make it slow to open.
constexpr size_t kMostPoints = 600000;
constexpr size_t kMostPointsPerCurve = 96;
constexpr size_t kFewestPointsPerCurve = 16;

/// Positions of at most `most` of `size` things, the first and the last among them.
std::vector<size_t> thinned(size_t size, size_t most) {
  std::vector<size_t> result;
  if (size <= most) {
    for (size_t i = 0; i < size; ++i) result.push_back(i);
    return result;
  }
  for (size_t i = 0; i < most; ++i) result.push_back(i * (size - 1) / (most - 1));
  return result;
}

/// Where a run stood at its steps.
json position_map(const RunDigest& run) {
  const std::vector<RunBin>* longest = nullptr;
  for (const auto& [name, bins] : run.run_series) {
    if (longest == nullptr || bins.size() > longest->size()) longest = &bins;
  }
  json steps = json::array();
  json examples = json::array();
  json time = json::array();
  bool any_examples = false;
  bool any_time = false;
  if (longest != nullptr) {
    for (const size_t i : thinned(longest->size(), kMostPointsPerCurve)) {
      const Position& at = (*longest)[i].position;
      steps.push_back(rounded(at.step));
      examples.push_back(rounded(at.examples));
      time.push_back(rounded(at.seconds));
      any_examples = any_examples || std::isfinite(at.examples);
      any_time = any_time || std::isfinite(at.seconds);
    }
  }
  return {{"step", steps},
          {"examples", any_examples ? examples : json::array()},
          {"time", any_time ? time : json::array()}};
}

}  // namespace

OverlayData overlay_data(const Comparison& comparison) {
  const RunSet& set = comparison.set;
  OverlayData result;
  std::map<std::string, std::pair<std::string, std::string>> meaning;  // unit, definition
  std::set<std::string> of_runs;
  std::map<std::string, size_t> of_layers;  // to the number of curves
  for (const RunDigest& run : set.runs()) {
    for (const auto& definition : run.registry.statistic())
      meaning.try_emplace(definition.name(), definition.unit(), definition.definition());
    for (const auto& [name, bins] : run.run_series) of_runs.insert(name);
    for (const auto& [name, bins] : run.layer_series) {
      of_layers[name] += static_cast<size_t>(run.model.layer_size());
    }
  }
  json series = json::array();
  const auto start = [&](const std::string& name) {
    return json{{"statistic", name},
                {"unit", meaning[name].first},
                {"definition", meaning[name].second},
                {"runs", json::array()}};
  };
  for (const std::string& name : of_runs) {
    json entry = start(name);
    for (size_t r = 0; r < set.runs().size(); ++r) {
      const auto* bins = set.runs()[r].series(name);
      if (bins == nullptr) continue;
      json steps = json::array();
      json values = json::array();
      for (const size_t i : thinned(bins->size(), kMostPointsPerCurve)) {
        steps.push_back(rounded((*bins)[i].position.step));
        values.push_back((*bins)[i].count > 0 ? rounded((*bins)[i].mean) : json(nullptr));
      }
      entry["runs"].push_back({{"run", r}, {"step", steps}, {"y", values}});
    }
    series.push_back(std::move(entry));
  }
  // What laws over several runs read comes first, then what has fewest curves.
  std::set<std::string> read;
  for (const LawDescription& law : comparison.laws)
    read.insert(law.statistics.begin(), law.statistics.end());
  std::vector<std::pair<std::string, size_t>> order(of_layers.begin(), of_layers.end());
  std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    const bool first = read.count(a.first) > 0;
    const bool second = read.count(b.first) > 0;
    return first != second ? first : a.second < b.second;
  });
  size_t curves = 0;
  for (const auto& [name, count] : order) curves += count;
  const size_t most = std::clamp(curves > 0 ? kMostPoints / curves : kMostPointsPerCurve,
                                 kFewestPointsPerCurve, size_t{48});
  size_t points = 0;
  for (const auto& [name, count] : order) {
    if (points + count * most > kMostPoints && points > 0) {
      result.left_out.push_back(name);
      continue;
    }
    points += count * most;
    json entry = start(name);
    std::vector<std::string> layers;
    for (size_t r = 0; r < set.runs().size(); ++r) {
      const RunDigest& run = set.runs()[r];
      const auto* bins = run.layers(name);
      if (bins == nullptr) continue;
      json steps = json::array();
      json values = json::object();
      const std::vector<size_t> kept = thinned(bins->size(), most);
      for (const size_t i : kept) steps.push_back(rounded((*bins)[i].position.step));
      for (const v1::Layer& layer : run.model.layer()) {
        json of_layer = json::array();
        bool any = false;
        for (const size_t i : kept) {
          const auto& cells = (*bins)[i].cell;
          const double mean = layer.id() < cells.size() ? cells[layer.id()].mean() : kUnknown;
          any = any || std::isfinite(mean);
          of_layer.push_back(rounded(mean));
        }
        if (!any) continue;
        values[layer.path()] = std::move(of_layer);
        if (std::find(layers.begin(), layers.end(), layer.path()) == layers.end())
          layers.push_back(layer.path());
      }
      entry["runs"].push_back({{"run", r}, {"step", steps}, {"y", values}});
    }
    entry["layers"] = layers;
    series.push_back(std::move(entry));
  }
  static const std::vector<std::string> kFirst = {
      "loss",          "probe_loss",   "output_change",   "preconditioned_sharpness",
      "sharpness",     "grad_norm_sq", "weight_norm_sq",  "update_norm_sq",
      "learning_rate", "batch_size",   "kernel_distance", "step_seconds"};
  json overview = json::array();
  for (const std::string& name : kFirst) {
    for (size_t i = 0; i < series.size(); ++i) {
      if (series[i]["statistic"] == name && !series[i].contains("layers")) overview.push_back(i);
    }
  }
  // Of replicates only, each is named.
  const bool single = set.groups() == 1;
  json runs = json::array();
  json groups = json::array();
  for (size_t r = 0; r < set.runs().size(); ++r) {
    runs.push_back({{"label", set.label(r)},
                    {"group", single ? r : set.group(r)},
                    {"map", position_map(set.runs()[r])}});
    if (single) groups.push_back({{"label", set.label(r)}});
  }
  for (size_t g = 0; g < set.groups() && !single; ++g) {
    groups.push_back({{"label", set.group_label(g)}});
  }
  result.data = {{"by", to_string(comparison.options.by)},
                 {"runs", runs},
                 {"groups", groups},
                 {"series", series},
                 {"overview", overview}};
  return result;
}

}  // namespace tycho::analyzer
