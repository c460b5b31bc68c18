#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "src/compare/run_set.h"

// Which sweeps a set of runs forms.

namespace tycho::analyzer {

const char* to_string(Axis axis) {
  switch (axis) {
    case Axis::kWidth:
      return "width";
    case Axis::kDepth:
      return "depth";
    case Axis::kBatchSize:
      return "batch size";
    case Axis::kLearningRate:
      return "learning rate";
  }
  return "";
}

size_t Ladder::runs() const {
  size_t sum = 0;
  for (const Level& level : levels) sum += level.runs.size();
  return sum;
}

std::string Ladder::describe() const {
  std::vector<std::string> values;
  size_t least = levels.empty() ? 0 : levels[0].runs.size();
  size_t most = 0;
  for (const Level& level : levels) {
    values.push_back(fmt::format("{:.6g}", level.value));
    least = std::min(least, level.runs.size());
    most = std::max(most, level.runs.size());
  }
  std::string out = fmt::format("{} {}, ", to_string(axis), enumerate(values));
  if (least == most) {
    out += most == 1 ? "one run each" : fmt::format("{} runs each", most);
  } else {
    out += fmt::format("{} to {} runs each", least, most);
  }
  if (!label.empty()) out += " (" + label + ")";
  if (!follows.empty()) out += fmt::format("; along with it: {}", enumerate(follows));
  return out;
}

std::vector<Ladder> RunSet::ladders(Axis axis, const std::set<std::string>& free) const {
  const std::string name = to_string(axis);
  std::vector<std::string> split;  // what runs of a ladder share
  std::vector<std::string> others;
  // What is the same wherever the axis, what is shared and `more` are the same follows from them.
  const auto follows = [&](const std::string& key, const std::set<std::string>& more) {
    std::map<std::string, std::string> seen;
    for (size_t r = 0; r < runs_.size(); ++r) {
      std::string given = setting(name, r);
      for (const std::string& shared : split) given += '\0' + setting(shared, r);
      for (const std::string& also : more) given += '\0' + setting(also, r);
      if (seen.try_emplace(given, setting(key, r)).first->second != setting(key, r)) return false;
    }
    return true;
  };
  const auto number = [&](const std::string& key) {
    for (size_t r = 0; r < runs_.size(); ++r) {
      if (!is_number(setting(key, r))) return false;
    }
    return true;
  };
  for (const std::string& key : keys()) {
    if (key == name || free.count(key) > 0) continue;
    // A number may be another name of what is free: `--lr 0.1` of the learning rate; the run's name
    // too. Another word is not: it names a variant, even where every variant has a learning rate of
    // its own.
    const bool renames = !free.empty() && (number(key) || key == kNameKey);
    const bool told = follows(key, {}) || (renames && follows(key, free));
    (told ? others : split).push_back(key);
  }
  std::map<std::string, std::vector<size_t>> members;
  for (size_t r = 0; r < runs_.size(); ++r) {
    if (!std::isfinite(value(axis, r)) || !(value(axis, r) > 0)) continue;
    std::string key;
    for (const std::string& part : split) key += setting(part, r) + '\0';
    members[key].push_back(r);
  }
  std::vector<Ladder> result;
  for (const auto& member : members) {
    const std::vector<size_t>& runs = member.second;
    Ladder ladder;
    ladder.axis = axis;
    std::map<double, std::vector<size_t>> levels;
    for (const size_t r : runs) levels[value(axis, r)].push_back(r);
    if (levels.size() < 2) continue;
    for (auto& [at, of] : levels) ladder.levels.push_back({at, std::move(of)});
    std::vector<std::string> parts;
    for (const std::string& part : split) {
      const std::string shared = setting(part, runs[0]);
      parts.push_back(part + " " + (shared.empty() ? "not given" : shared));
    }
    ladder.label = fmt::format("{}", fmt::join(parts, ", "));
    for (const std::string& other : others) {
      // A label that goes with the axis is another name of it.
      const bool label =
          std::any_of(differences_.begin(), differences_.end(), [&](const Difference& difference) {
            return difference.name == other && difference.kind == SettingKind::kLabel;
          });
      const bool varies = !label && std::any_of(runs.begin(), runs.end(), [&](size_t r) {
        return setting(other, r) != setting(other, runs[0]);
      });
      if (varies) ladder.follows.push_back(other);
    }
    result.push_back(std::move(ladder));
  }
  // As runs are sorted: numbers as numbers.
  std::stable_sort(result.begin(), result.end(), [](const Ladder& a, const Ladder& b) {
    return a.levels[0].runs[0] < b.levels[0].runs[0];
  });
  return result;
}

}  // namespace tycho::analyzer
