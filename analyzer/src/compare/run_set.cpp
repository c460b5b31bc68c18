#include "src/compare/run_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace tycho::analyzer {
namespace {

constexpr Axis kAxes[] = {Axis::kWidth, Axis::kDepth, Axis::kBatchSize, Axis::kLearningRate};

/// The extent that occurs most often among the first two of matrices; of equals the largest.
double common_extent(const std::map<std::string, std::vector<int64_t>>& shapes) {
  std::map<int64_t, int> count;
  for (const auto& [name, shape] : shapes) {
    if (shape.size() < 2) continue;
    ++count[shape[0]];
    ++count[shape[1]];
  }
  int64_t best = 0;
  int most = 0;
  for (const auto& [extent, times] : count) {
    if (times >= most) {
      best = extent;
      most = times;
    }
  }
  return most > 0 ? static_cast<double>(best) : kUnknown;
}

/// The extents that differ from run to run, as one number per run: of all positions (parameter and
/// dimension) the kind that occurs most often. Empty where all are the same.
std::vector<double> varying_extent(
    const std::vector<std::map<std::string, std::vector<int64_t>>>& shapes) {
  std::map<std::vector<double>, int> count;
  for (const auto& [name, first] : shapes[0]) {
    for (size_t d = 0; d < std::min<size_t>(first.size(), 2); ++d) {
      std::vector<double> extents;
      for (const auto& run : shapes) {
        const auto found = run.find(name);
        if (found == run.end() || d >= found->second.size()) break;
        extents.push_back(static_cast<double>(found->second[d]));
      }
      if (extents.size() != shapes.size()) continue;
      if (std::all_of(extents.begin(), extents.end(),
                      [&](double extent) { return extent == extents[0]; })) {
        continue;
      }
      ++count[extents];
    }
  }
  std::vector<double> best;
  int most = 0;
  for (const auto& [extents, times] : count) {
    if (times < most) continue;
    best = extents;
    most = times;
  }
  return best;
}

/// Path of a list of modules (up to the first number in it) to the number of its members.
std::map<std::string, double> list_lengths(const v1::ModelDescription& model) {
  std::map<std::string, std::set<std::string>> members;
  for (const v1::Layer& layer : model.layer()) {
    const std::string pattern = path_pattern(layer.path());
    const size_t hash = pattern.find('#');
    if (hash == std::string::npos) continue;
    const std::string prefix = layer.path().substr(0, hash);  // the same up to there
    members[prefix].insert(layer.path().substr(
        hash, std::min(layer.path().find('.', hash), layer.path().size()) - hash));
  }
  std::map<std::string, double> result;
  for (const auto& [prefix, names] : members) result[prefix] = static_cast<double>(names.size());
  return result;
}

int rank_of(SettingKind kind) { return static_cast<int>(kind); }

}  // namespace

std::string enumerate(const std::vector<std::string>& parts) {
  std::string out;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out += i + 1 == parts.size() ? " and " : ", ";
    out += parts[i];
  }
  return out;
}

RunSet::RunSet(std::vector<RunDigest> runs, std::vector<LeftOut> left_out,
               std::set<std::string> ignored)
    : left_out_(std::move(left_out)), ignored_(std::move(ignored)) {
  std::map<std::string, std::string> path_of;  // by run id
  for (RunDigest& run : runs) {
    const auto [known, added] = path_of.try_emplace(run.run.run_id(), run.path);
    if (!added && !run.run.run_id().empty()) {
      left_out_.push_back({run.path, "it is the same run as " + known->second});
      continue;
    }
    if (run.frames == 0) {
      left_out_.push_back({run.path, "it has no observed step"});
      continue;
    }
    runs_.push_back(std::move(run));
  }
  for (const RunDigest& run : runs_) settings_.push_back(settings_of(run));
  find_dimensions();
  find_differences();
  sort_runs();
  find_notes();
  find_labels();
}

void RunSet::sort_runs() {
  const std::vector<std::string> names = keys();
  std::vector<size_t> order(runs_.size());
  for (size_t r = 0; r < order.size(); ++r) order[r] = r;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    for (const std::string& name : names) {
      const std::string left = setting(name, a);
      const std::string right = setting(name, b);
      if (left == right) continue;
      if (is_number(left) != is_number(right)) return is_number(left);
      if (is_number(left)) {
        const double a_value = std::strtod(left.c_str(), nullptr);
        const double b_value = std::strtod(right.c_str(), nullptr);
        if (a_value == b_value) continue;
        return a_value < b_value;
      }
      return left < right;
    }
    return false;
  });
  const auto permute = [&](auto& values) {
    auto sorted = values;
    for (size_t r = 0; r < order.size(); ++r) sorted[r] = std::move(values[order[r]]);
    values = std::move(sorted);
  };
  permute(settings_);
  permute(width_);
  permute(depth_);
  std::vector<RunDigest> sorted;
  sorted.reserve(order.size());
  for (const size_t r : order) sorted.push_back(std::move(runs_[r]));
  runs_ = std::move(sorted);
  for (Difference& difference : differences_) permute(difference.value);
}

void RunSet::find_dimensions() {
  width_.assign(runs_.size(), kUnknown);
  depth_.assign(runs_.size(), kUnknown);
  if (runs_.empty()) return;
  std::vector<std::map<std::string, std::vector<int64_t>>> shapes;
  std::vector<std::map<std::string, double>> lists;
  for (const RunDigest& run : runs_) {
    shapes.push_back(shapes_of(run.model));
    lists.push_back(list_lengths(run.model));
  }
  const bool same_names = std::all_of(shapes.begin(), shapes.end(), [&](const auto& run) {
    return run.size() == shapes[0].size() &&
           std::equal(run.begin(), run.end(), shapes[0].begin(),
                      [](const auto& a, const auto& b) { return a.first == b.first; });
  });
  const std::vector<double> varying = same_names ? varying_extent(shapes) : std::vector<double>();
  for (size_t r = 0; r < runs_.size(); ++r) {
    width_[r] = varying.empty() ? common_extent(shapes[r]) : varying[r];
  }
  std::set<std::string> prefixes;
  for (const auto& run : lists) {
    for (const auto& [prefix, length] : run) prefixes.insert(prefix);
  }
  std::string deepest;
  double most = 0;
  for (const std::string& prefix : prefixes) {
    double low = std::numeric_limits<double>::infinity();
    double high = 0;
    for (const auto& run : lists) {
      const auto found = run.find(prefix);
      const double length = found == run.end() ? 0 : found->second;
      low = std::min(low, length);
      high = std::max(high, length);
    }
    // Of lists that differ between runs the longest.
    if (low != high && low > 0 && high > most) {
      most = high;
      deepest = prefix;
    }
  }
  for (size_t r = 0; r < runs_.size(); ++r) {
    if (most > 0) {
      depth_[r] = lists[r].at(deepest);
      continue;
    }
    double matrices = 0;
    for (const auto& [name, shape] : shapes[r]) matrices += shape.size() >= 2 ? 1 : 0;
    depth_[r] = matrices;
  }
}

std::string RunSet::setting(const std::string& name, size_t run) const {
  for (const Axis axis : kAxes) {
    if (name != to_string(axis)) continue;
    const double number = value(axis, run);
    return std::isfinite(number) ? fmt::format("{:.9g}", number) : "";
  }
  const auto found = settings_[run].find(name);
  return found == settings_[run].end() ? "" : found->second.value;
}

double RunSet::value(Axis axis, size_t run) const {
  switch (axis) {
    case Axis::kWidth:
      return width_[run];
    case Axis::kDepth:
      return depth_[run];
    case Axis::kBatchSize:
      return runs_[run].batch_size;
    case Axis::kLearningRate:
      return runs_[run].peak_learning_rate;
  }
  return kUnknown;
}

void RunSet::find_differences() {
  std::map<std::string, SettingKind> names;
  for (const auto& run : settings_) {
    for (const auto& [name, setting] : run) names.emplace(name, setting.kind);
  }
  // What is read off the shapes is a setting too.
  for (const Axis axis : {Axis::kWidth, Axis::kDepth})
    names.emplace(to_string(axis), SettingKind::kTraining);
  for (const auto& [name, kind] : names) {
    Difference difference;
    difference.name = name;
    difference.kind = kind;
    bool same = true;
    for (size_t r = 0; r < runs_.size(); ++r) {
      difference.value.push_back(setting(name, r));
      same = same && difference.value[r] == difference.value[0];
    }
    if (!same) differences_.push_back(std::move(difference));
  }
  std::stable_sort(
      differences_.begin(), differences_.end(),
      [](const Difference& a, const Difference& b) { return rank_of(a.kind) < rank_of(b.kind); });
}

std::vector<std::string> RunSet::keys() const {
  std::vector<std::string> result;
  const auto varies = [&](const std::string& name) {
    for (size_t r = 1; r < runs_.size(); ++r) {
      if (setting(name, r) != setting(name, 0)) return true;
    }
    return false;
  };
  // What the user named comes before what it may have changed: the learning rates of groups follow
  // from a parametrization, not the other way round.
  for (const Difference& difference : differences_) {
    if (difference.kind != SettingKind::kLabel || ignored_.count(difference.name) > 0) continue;
    // A value of its own for every run is a name, and tells nothing.
    const std::set<std::string> values(difference.value.begin(), difference.value.end());
    if (values.size() == runs_.size()) continue;
    result.push_back(difference.name);
  }
  // The run's name is asked where nothing else says it.
  const auto name = std::find(result.begin(), result.end(), kNameKey);
  if (name != result.end()) std::rotate(name, name + 1, result.end());
  for (const char* name : {"kinds of layers", "optimizer", "loss reduction", "width", "depth",
                           "batch size", "learning rate"}) {
    if (ignored_.count(name) == 0 && varies(name)) result.emplace_back(name);
  }
  for (const Difference& difference : differences_) {
    if (difference.kind != SettingKind::kTraining || ignored_.count(difference.name) > 0) continue;
    if (std::find(result.begin(), result.end(), difference.name) == result.end()) {
      result.push_back(difference.name);
    }
  }
  return result;
}

std::vector<std::string> RunSet::common_layers(const std::vector<size_t>& runs) const {
  std::vector<std::string> result;
  if (runs.empty()) return result;
  for (const v1::Layer& layer : runs_[runs[0]].model.layer()) {
    const bool everywhere = std::all_of(
        runs.begin(), runs.end(), [&](size_t r) { return runs_[r].layer_id(layer.path()) >= 0; });
    if (everywhere) result.push_back(layer.path());
  }
  return result;
}

void RunSet::find_labels() {
  const std::vector<std::string> names = keys();
  std::map<std::string, size_t> group_of;
  std::vector<std::string> base;
  for (size_t r = 0; r < runs_.size(); ++r) {
    std::string key;
    for (const std::string& name : names) key += setting(name, r) + '\0';
    const auto [found, added] = group_of.try_emplace(key, group_of.size());
    groups_.push_back(found->second);
    // Axes say it best; what else differs is added until the label tells the groups apart.
    std::vector<std::string> parts;
    for (const std::string& name : names) {
      const bool axis = std::any_of(std::begin(kAxes), std::end(kAxes),
                                    [&](Axis a) { return name == to_string(a); });
      if (axis) {
        parts.push_back(name + " " + setting(name, r));
      } else if (name.rfind("tag ", 0) == 0 || name == "optimizer") {
        const std::string text = setting(name, r);
        if (!is_number(text) && !text.empty() && text != "yes") {
          parts.push_back(text);
        } else {
          parts.push_back((name == "optimizer" ? name : name.substr(4)) + " " +
                          (text.empty() ? "no" : text));
        }
      }
    }
    base.push_back(fmt::format("{}", fmt::join(parts, ", ")));
  }
  group_labels_.resize(group_of.size());
  std::map<std::string, std::set<size_t>> groups_by_label;
  for (size_t r = 0; r < runs_.size(); ++r) groups_by_label[base[r]].insert(groups_[r]);
  std::map<std::string, int> times;
  for (size_t r = 0; r < runs_.size(); ++r) {
    std::string label = base[r];
    if (groups_by_label[base[r]].size() > 1 || label.empty()) {
      label += (label.empty() ? "" : ", ") + runs_[r].name;
    }
    if (group_labels_[groups_[r]].empty()) group_labels_[groups_[r]] = label;
    labels_.push_back(label);
    ++times[label];
  }
  std::map<std::string, int> number;
  for (std::string& label : labels_) {
    if (times[label] < 2) continue;
    const int at = ++number[label];
    label += fmt::format(" #{}", at);
  }
}

void RunSet::find_notes() {
  for (const RunDigest& run : runs_) {
    if (run.bytes_lost > 0) {
      notes_.push_back(
          fmt::format("{} is damaged: {} bytes could not be read, the rest is compared.", run.name,
                      run.bytes_lost));
    }
    if (run.messages_dropped > 0) {
      notes_.push_back(fmt::format("{} lost {} messages while it was recorded.", run.name,
                                   run.messages_dropped));
    }
    if (run.being_written || run.died) {
      notes_.push_back(fmt::format(
          "{} is not finished ({}): it is compared up to step {}.", run.name,
          run.being_written ? "it is being written" : "its writer died", run.last_step));
    }
    const auto* loss = run.series("loss");
    if (loss != nullptr) {
      for (const RunBin& bin : *loss) {
        if (bin.non_finite == 0) continue;
        notes_.push_back(
            fmt::format("{}: the loss is not finite near step {:.0f}; laws use the steps before.",
                        run.name, bin.position.step));
        break;
      }
    }
  }
  const auto some_have = [&](const std::map<std::string, std::vector<std::string>>& owners,
                             const char* what) {
    std::vector<std::string> partial;
    for (const auto& [name, of] : owners) {
      if (of.size() < runs_.size()) partial.push_back(name);
    }
    if (partial.empty()) return;
    constexpr size_t kMost = 8;
    const size_t all = partial.size();
    if (all > kMost) partial.resize(kMost);
    notes_.push_back(fmt::format("{} {} only in some runs and compared among those: {}{}.", all,
                                 what, enumerate(partial),
                                 all > kMost ? fmt::format(" and {} more", all - kMost) : ""));
  };
  std::map<std::string, std::vector<std::string>> owners;
  for (const RunDigest& run : runs_) {
    for (const auto& [name, series] : run.run_series) owners["run: " + name].push_back(run.name);
    for (const auto& [name, series] : run.layer_series)
      owners["layers: " + name].push_back(run.name);
  }
  some_have(owners, "statistics are");
  owners.clear();
  for (const RunDigest& run : runs_) {
    std::set<std::string> paths;
    for (const v1::Layer& layer : run.model.layer())
      paths.insert(layer.path().empty() ? "(root)" : layer.path());
    for (const std::string& path : paths) owners[path].push_back(run.name);
  }
  some_have(owners, "layers are");
  int64_t shortest = std::numeric_limits<int64_t>::max();
  int64_t longest = -1;
  for (const RunDigest& run : runs_) {
    shortest = std::min(shortest, run.last_step);
    longest = std::max(longest, run.last_step);
  }
  if (!runs_.empty() && shortest < longest) {
    notes_.push_back(fmt::format("Runs have different lengths: the last steps are {} to {}.",
                                 shortest, longest));
  }
}

}  // namespace tycho::analyzer
