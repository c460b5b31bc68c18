#include <nlohmann/json.hpp>

#include "src/compare/comparison.h"
#include "src/report/json_parts.h"

namespace tycho::analyzer {
namespace {

using nlohmann::json;

json pairs(const std::vector<std::pair<double, double>>& points) {
  json result = json::array();
  for (const auto& [x, y] : points) result.push_back({number(x), number(y)});
  return result;
}

const char* to_string(SettingKind kind) {
  switch (kind) {
    case SettingKind::kTraining:
      return "training";
    case SettingKind::kLabel:
      return "label";
    case SettingKind::kShape:
      return "shape";
    case SettingKind::kSeed:
      return "seed";
    case SettingKind::kInstrument:
      return "instrument";
  }
  return "";
}

}  // namespace

std::string json_comparison(const Comparison& comparison) {
  const RunSet& set = comparison.set;
  const Outcomes ends = outcomes(comparison);
  json runs = json::array();
  for (size_t r = 0; r < set.runs().size(); ++r) {
    const RunDigest& run = set.runs()[r];
    runs.push_back(
        {{"path", run.path},
         {"id", run.run.run_id()},
         {"name", run.run.run_name()},
         {"label", set.label(r)},
         {"group", set.group(r)},
         {"width", number(set.value(Axis::kWidth, r))},
         {"depth", number(set.value(Axis::kDepth, r))},
         {"batch_size", number(set.value(Axis::kBatchSize, r))},
         {"learning_rate", number(set.value(Axis::kLearningRate, r))},
         {"optimizer", run.run.optimizer()},
         {"seed", run.run.seed()},
         {"first_step", run.first_step},
         {"last_step", run.last_step},
         {"observed_steps", run.frames},
         {"end", number(ends.run[r].end)},
         {"loss", number(ends.run[r].loss)},
         {"common_loss", number(ends.run[r].common_loss)},
         {"finished", !run.being_written && !run.died},
         {"lost",
          {{"bytes_skipped", run.bytes_lost}, {"messages_dropped", run.messages_dropped}}}});
  }
  json left_out = json::array();
  for (const LeftOut& left : set.left_out())
    left_out.push_back({{"path", left.path}, {"why", left.why}});
  json differences = json::array();
  for (const Difference& difference : set.differences()) {
    json values = json::array();
    for (const std::string& value : difference.value)
      values.push_back(value.empty() ? json(nullptr) : json(value));
    differences.push_back(
        {{"name", difference.name}, {"kind", to_string(difference.kind)}, {"values", values}});
  }
  json ladders = json::array();
  for (const Ladder& ladder : sweeps(set)) {
    json levels = json::array();
    for (const Level& level : ladder.levels)
      levels.push_back({{"value", number(level.value)}, {"runs", level.runs}});
    ladders.push_back({{"axis", to_string(ladder.axis)},
                       {"label", ladder.label},
                       {"along_with_it", ladder.follows},
                       {"levels", levels}});
  }
  json laws = json::array();
  for (const ComparisonFinding& finding : comparison.findings) {
    json steps = json::array();
    for (const auto& at : finding.by_step) {
      steps.push_back({{"step", number(at.step)},
                       {"exponent", number(at.slope.value)},
                       {"ci_low", number(at.slope.low)},
                       {"ci_high", number(at.slope.high)}});
    }
    json law = finding_json(finding);
    law["sweep"] = finding.sweep;
    law["statistic"] = finding.evidence_statistic;
    law["by_step"] = steps;
    law["points"] = pairs(finding.points);
    law["curve"] = pairs(finding.curve);
    laws.push_back(law);
  }
  const json result = {{"schema", "tycho-comparison-1"},
                       {"by", to_string(comparison.options.by)},
                       {"loss_statistic", ends.statistic},
                       {"common_end", number(ends.common_end)},
                       {"runs", runs},
                       {"left_out", left_out},
                       {"notes", set.notes()},
                       {"differences", differences},
                       {"sweeps", ladders},
                       {"laws", laws}};
  // Names come from the user's program and need not be UTF-8.
  return result.dump(2, ' ', true, json::error_handler_t::replace) + "\n";
}

}  // namespace tycho::analyzer
