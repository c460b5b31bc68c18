#include "src/compare/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <set>

namespace tycho::analyzer {
namespace {

constexpr int kMostGroups = 64;

std::string text_of(double value) { return fmt::format("{:.9g}", value); }

bool contains_word(const std::string& name, const char* word) {
  return name.find(word) != std::string::npos;
}

/// Arguments that say where files are: different for every run, and nothing about it.
bool names_files(const std::string& name, const std::string& value) {
  static const std::set<std::string> kNames = {"run",    "run-dir", "o",   "out",     "output",
                                               "outdir", "dir",     "log", "log-dir", "name"};
  std::string bare = name;
  std::transform(bare.begin(), bare.end(), bare.begin(), [](unsigned char c) {
    return c == '_' ? '-' : static_cast<char>(std::tolower(c));
  });
  return value.find('/') != std::string::npos || kNames.count(bare) > 0;
}

std::string without_digits(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (std::isdigit(static_cast<unsigned char>(c)) == 0) out += c;
  }
  return out;
}

SettingKind kind_of_label(const std::string& name) {
  std::string lower;
  for (const char c : name) lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return contains_word(lower, "seed") || contains_word(lower, "replicate") ? SettingKind::kSeed
                                                                           : SettingKind::kLabel;
}

void add_arguments(const RunDigest& run, std::map<std::string, Setting>* settings) {
  const auto& line = run.run.command_line();
  int position = 0;
  for (int i = 1; i < line.size(); ++i) {
    const std::string& argument = line.Get(i);
    if (argument.size() < 2 || argument[0] != '-' || is_number(argument)) {
      ++position;
      if (!names_files("", argument)) {
        (*settings)[fmt::format("argument {}", position)] = {argument, SettingKind::kLabel};
      }
      continue;
    }
    std::string name = argument;
    std::string value = "yes";
    if (const size_t equals = argument.find('='); equals != std::string::npos) {
      name = argument.substr(0, equals);
      value = argument.substr(equals + 1);
    } else if (i + 1 < line.size() && (line.Get(i + 1).empty() || line.Get(i + 1)[0] != '-' ||
                                       is_number(line.Get(i + 1)))) {
      value = line.Get(++i);
    }
    const std::string bare = name.substr(std::min(name.find_first_not_of('-'), name.size()));
    if (!names_files(bare, value)) {
      (*settings)["argument " + name] = {value, kind_of_label(bare)};
    }
  }
}

void add_optimizer(const RunDigest& run, std::map<std::string, Setting>* settings) {
  const std::string& optimizer =
      run.run.optimizer().empty() ? run.optimizer.optimizer() : run.run.optimizer();
  if (!optimizer.empty()) (*settings)["optimizer"] = {optimizer, SettingKind::kTraining};
  if (std::isfinite(run.peak_learning_rate)) {
    (*settings)["learning rate"] = {text_of(run.peak_learning_rate), SettingKind::kTraining};
  }
  for (int g = 0; g < run.optimizer.group_size() && g < kMostGroups; ++g) {
    const v1::ParameterGroup& group = run.optimizer.group(g);
    const std::string of = g == 0 ? "" : fmt::format(" of group {}", g + 1);
    const auto add = [&](const char* name, double value, bool always) {
      if (always || value != 0) (*settings)[name + of] = {text_of(value), SettingKind::kTraining};
    };
    if (g > 0) add("learning rate", group.learning_rate(), true);
    add("momentum", group.momentum(), false);
    add("dampening", group.dampening(), false);
    add("nesterov", group.nesterov() ? 1 : 0, false);
    add("weight decay", group.weight_decay(), true);
    add("decoupled weight decay", group.decoupled_weight_decay() ? 1 : 0, false);
    add("beta1", group.beta1(), false);
    add("beta2", group.beta2(), false);
    add("epsilon", group.epsilon(), false);
    add("amsgrad", group.amsgrad() ? 1 : 0, false);
    add("alpha", group.alpha(), false);
    add("learning rate decay", group.learning_rate_decay(), false);
    add("centered", group.centered() ? 1 : 0, false);
  }
}

}  // namespace

bool is_number(const std::string& text) {
  if (text.empty()) return false;
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end != nullptr && *end == '\0' && std::isfinite(value);
}

std::string path_pattern(const std::string& path) {
  std::string out;
  size_t at = 0;
  while (at <= path.size()) {
    const size_t end = std::min(path.find('.', at), path.size());
    const std::string part = path.substr(at, end - at);
    const bool number = !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) {
      return std::isdigit(c) != 0;
    });
    out += (at == 0 ? "" : ".") + (number ? std::string("#") : part);
    at = end + 1;
  }
  return out;
}

std::map<std::string, std::vector<int64_t>> shapes_of(const v1::ModelDescription& model) {
  std::map<std::string, std::vector<int64_t>> result;
  for (const v1::Parameter& parameter : model.parameter()) {
    result[parameter.name()] = {parameter.shape().begin(), parameter.shape().end()};
  }
  return result;
}

std::map<std::string, Setting> settings_of(const RunDigest& run) {
  std::map<std::string, Setting> settings;
  add_optimizer(run, &settings);
  add_arguments(run, &settings);
  if (std::isfinite(run.batch_size)) {
    settings["batch size"] = {text_of(run.batch_size), SettingKind::kTraining};
  }
  if (!run.run.loss_reduction().empty()) {
    settings["loss reduction"] = {run.run.loss_reduction(), SettingKind::kTraining};
  }
  settings["seed"] = {std::to_string(run.run.seed()), SettingKind::kSeed};
  for (const std::string& tag : run.run.tags()) {
    const size_t equals = tag.find_first_of("=:");
    const std::string name = tag.substr(0, equals);
    const std::string value = equals == std::string::npos ? "yes" : tag.substr(equals + 1);
    settings["tag " + name] = {value, kind_of_label(name)};
  }
  if (const std::string stem = without_digits(run.run.run_name()); !stem.empty()) {
    settings[kNameKey] = {stem, SettingKind::kLabel};
  }
  static const std::set<std::string> kSaidElsewhere = {"run_name", "tags", "seed", "resume",
                                                       "loss_reduction"};
  for (const auto& [name, value] : run.run.options()) {
    if (kSaidElsewhere.count(name) == 0) {
      settings["option " + name] = {value, SettingKind::kInstrument};
    }
  }
  for (const auto& [name, value] : run.run.versions()) {
    settings["version of " + name] = {value, SettingKind::kInstrument};
  }
  for (const auto& [name, value] : run.run.environment()) {
    settings["environment: " + name] = {value, SettingKind::kInstrument};
  }
  std::set<std::string> patterns;
  uint64_t elements = 0;
  for (const v1::Layer& layer : run.model.layer()) {
    patterns.insert(path_pattern(layer.path()) + " " + layer.type());
  }
  for (const v1::Parameter& parameter : run.model.parameter()) {
    elements += parameter.element_count();
    std::string shape;
    for (const int64_t extent : parameter.shape())
      shape += (shape.empty() ? "" : " x ") + std::to_string(extent);
    settings["shape of " + parameter.name()] = {shape, SettingKind::kShape};
  }
  settings["kinds of layers"] = {fmt::format("{}", fmt::join(patterns, ", ")),
                                 SettingKind::kTraining};
  settings["number of layers"] = {std::to_string(run.model.layer_size()), SettingKind::kShape};
  settings["number of weights"] = {std::to_string(elements), SettingKind::kShape};
  return settings;
}

}  // namespace tycho::analyzer
