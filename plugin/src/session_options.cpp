#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <numeric>
#include <system_error>
#include <utility>
#include <vector>

#include "options.h"

namespace tycho {
namespace {

[[noreturn]] void refuse(const std::string& option, const std::string& value,
                         const std::string& legal) {
  throw OptionError(fmt::format("tycho: option {} = \"{}\": {}", option, value, legal));
}

const char* text_of(Preset value) {
  switch (value) {
    case Preset::economy:
      return "economy";
    case Preset::standard:
      return "standard";
    default:
      return "full";
  }
}
const char* text_of(Reduction value) { return value == Reduction::mean ? "mean" : "sum"; }
const char* text_of(Schedule value) { return value == Schedule::budget ? "budget" : "fixed"; }
const char* text_of(Durability value) { return value == Durability::drop ? "drop" : "complete"; }

template <typename Map>
std::string join(const Map& intervals) {
  std::string text;
  for (const auto& [name, interval] : intervals) {
    text += fmt::format("{}{}={}", text.empty() ? "" : ",", name, interval);
  }
  return text;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// All of the text as a number, whatever the locale.
template <typename Number>
Number parse_number(const std::string& option, const std::string& text, const char* legal) {
  Number value{};
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stopped != end) refuse(option, text, legal);
  return value;
}

bool parse_flag(const std::string& option, const std::string& text) {
  for (const char* yes : {"1", "true", "on"}) {
    if (text == yes) return true;
  }
  for (const char* no : {"0", "false", "off"}) {
    if (text == no) return false;
  }
  refuse(option, text, "1, true, on, 0, false or off is expected");
}

constexpr const char* kEarlyBudget =
    "SHARE,SECONDS is expected, a share in [0, 1] and a time of at least 0";

// What TYCHO_ may be followed by.
constexpr const char* kVariables[] = {
    "DISABLE",    "DIRECTORY", "PRESET",      "OVERHEAD_BUDGET", "EVERY",
    "LOG_SPACED", "TAGS",      "BATCH_DIM",   "INCLUDE",         "LOSS_REDUCTION",
    "EXCLUDE",    "SEED",      "RESUME",      "RUN_NAME",        "EXCLUSIVE",
    "DURABILITY", "TAPE",      "TAPE_MEMORY", "EARLY_BUDGET",    "SCHEDULE"};

/// Letters that have to be put in, left out or replaced to make one text the other.
size_t edits_between(const std::string& one, const std::string& other) {
  std::vector<size_t> row(other.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < one.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < other.size(); ++j) {
      const size_t replaced = diagonal + (one[i] == other[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

void parse_intervals(const std::string& option, const std::string& text,
                     const std::function<void(const std::string&, int64_t)>& set) {
  constexpr const char* kLegal =
      "a list NAME=NUMBER,NAME=NUMBER is expected, each number at least 1";
  for (const std::string& part : split(text)) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos || equals == 0) refuse(option, text, kLegal);
    set(part.substr(0, equals), parse_number<int64_t>(option, part.substr(equals + 1), kLegal));
  }
}

}  // namespace

SessionOptions::SessionOptions(std::string directory) : directory_(std::move(directory)) {}

SessionOptions& SessionOptions::directory(std::string value) {
  directory_ = std::move(value);
  return *this;
}

SessionOptions& SessionOptions::preset(Preset value) {
  preset_ = value;
  return *this;
}

SessionOptions& SessionOptions::overhead_budget(std::optional<double> value) {
  if (value && !(*value > 0 && *value <= 1)) {
    refuse("overhead_budget", fmt::format("{}", *value), "a share in (0, 1], or none, is expected");
  }
  overhead_budget_ = value;
  return *this;
}

SessionOptions& SessionOptions::early_budget(double share, double seconds) {
  if (!(share >= 0 && share <= 1) || !(seconds >= 0) || !std::isfinite(seconds)) {
    refuse("early_budget", fmt::format("{},{}", share, seconds), kEarlyBudget);
  }
  early_share_ = share;
  early_seconds_ = seconds;
  return *this;
}

SessionOptions& SessionOptions::schedule(Schedule value) {
  schedule_ = value;
  return *this;
}

SessionOptions& SessionOptions::every(const std::string& name, int64_t interval) {
  if (interval < 1) {
    refuse("every", fmt::format("{}={}", name, interval), "an interval of at least 1 is expected");
  }
  every_[name] = interval;
  return *this;
}

SessionOptions& SessionOptions::log_spaced(const std::string& name, int64_t per_decade) {
  if (per_decade < 1) {
    refuse("log_spaced", fmt::format("{}={}", name, per_decade),
           "at least 1 step per factor of ten is expected");
  }
  log_spaced_[name] = per_decade;
  return *this;
}

SessionOptions& SessionOptions::loss_reduction(Reduction value) {
  loss_reduction_ = value;
  return *this;
}

SessionOptions& SessionOptions::batch_dim(int64_t value) {
  if (value < 0 || value > kLargestBatchDim) {
    refuse("batch_dim", std::to_string(value),
           fmt::format("a dimension from 0 to {} is expected", kLargestBatchDim));
  }
  batch_dim_ = value;
  return *this;
}

SessionOptions& SessionOptions::include(std::vector<std::string> patterns) {
  include_ = std::move(patterns);
  return *this;
}

SessionOptions& SessionOptions::exclude(std::vector<std::string> patterns) {
  exclude_ = std::move(patterns);
  return *this;
}

SessionOptions& SessionOptions::seed(uint64_t value) {
  seed_ = value;
  return *this;
}

SessionOptions& SessionOptions::run_name(std::string value) {
  run_name_ = std::move(value);
  return *this;
}

SessionOptions& SessionOptions::tags(std::vector<std::string> value) {
  tags_ = std::move(value);
  return *this;
}

SessionOptions& SessionOptions::durability(Durability value) {
  durability_ = value;
  return *this;
}

SessionOptions& SessionOptions::resume(int64_t step) {
  if (step < 0) refuse("resume", std::to_string(step), "a step of at least 0 is expected");
  resume_ = step;
  return *this;
}

SessionOptions& SessionOptions::exclusive(bool value) {
  exclusive_ = value;
  return *this;
}

SessionOptions& SessionOptions::tape(bool value) {
  tape_ = value;
  return *this;
}

SessionOptions& SessionOptions::tape_memory(int64_t mebibytes) {
  if (mebibytes < 1 || mebibytes > kLargestTapeMemory) {
    refuse("tape_memory", std::to_string(mebibytes),
           fmt::format("a number of MiB from 1 to {} is expected", kLargestTapeMemory));
  }
  tape_memory_ = mebibytes;
  return *this;
}

std::vector<std::string> unknown_variables() {
  std::vector<std::string> sentences;
  const std::string prefix = "TYCHO_";
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    const std::string text = *variable;
    const std::string name = text.substr(0, text.find('='));
    if (name.rfind(prefix, 0) != 0) continue;
    const std::string field = name.substr(prefix.size());
    const char* const* nearest = std::min_element(
        std::begin(kVariables), std::end(kVariables), [&](const char* one, const char* other) {
          return edits_between(field, one) < edits_between(field, other);
        });
    if (field == *nearest) continue;
    sentences.push_back(
        fmt::format("the environment variable {} is unknown and has no effect; the nearest is "
                    "TYCHO_{}",
                    name, *nearest));
  }
  return sentences;
}

bool disabled_by_environment() {
  const char* value = std::getenv("TYCHO_DISABLE");
  return value != nullptr && *value != '\0' && std::string(value) != "0";
}

SessionOptions with_environment(SessionOptions options) {
  const auto apply = [](const char* name, const std::function<void(const std::string&)>& set) {
    if (const char* value = std::getenv(name)) set(value);
  };
  apply("TYCHO_DIRECTORY", [&](const std::string& text) { options.directory(text); });
  apply("TYCHO_PRESET", [&](const std::string& text) {
    for (const Preset value : {Preset::economy, Preset::standard, Preset::full}) {
      if (text == text_of(value)) return void(options.preset(value));
    }
    refuse("TYCHO_PRESET", text, "economy, standard or full is expected");
  });
  apply("TYCHO_OVERHEAD_BUDGET", [&](const std::string& text) {
    if (text == "none") return void(options.overhead_budget(std::nullopt));
    options.overhead_budget(parse_number<double>("TYCHO_OVERHEAD_BUDGET", text,
                                                 "a share in (0, 1], or none, is expected"));
  });
  apply("TYCHO_EARLY_BUDGET", [&](const std::string& text) {
    const std::vector<std::string> parts = split(text);
    if (parts.size() != 2) refuse("TYCHO_EARLY_BUDGET", text, kEarlyBudget);
    options.early_budget(parse_number<double>("TYCHO_EARLY_BUDGET", parts[0], kEarlyBudget),
                         parse_number<double>("TYCHO_EARLY_BUDGET", parts[1], kEarlyBudget));
  });
  apply("TYCHO_SCHEDULE", [&](const std::string& text) {
    for (const Schedule value : {Schedule::budget, Schedule::fixed}) {
      if (text == text_of(value)) return void(options.schedule(value));
    }
    refuse("TYCHO_SCHEDULE", text, "budget or fixed is expected");
  });
  apply("TYCHO_EVERY", [&](const std::string& text) {
    parse_intervals("TYCHO_EVERY", text, [&](const std::string& name, int64_t interval) {
      options.every(name, interval);
    });
  });
  apply("TYCHO_LOG_SPACED", [&](const std::string& text) {
    parse_intervals("TYCHO_LOG_SPACED", text, [&](const std::string& name, int64_t number) {
      options.log_spaced(name, number);
    });
  });
  apply("TYCHO_LOSS_REDUCTION", [&](const std::string& text) {
    for (const Reduction value : {Reduction::mean, Reduction::sum}) {
      if (text == text_of(value)) return void(options.loss_reduction(value));
    }
    refuse("TYCHO_LOSS_REDUCTION", text, "mean or sum is expected");
  });
  apply("TYCHO_BATCH_DIM", [&](const std::string& text) {
    options.batch_dim(parse_number<int64_t>("TYCHO_BATCH_DIM", text, "a dimension is expected"));
  });
  apply("TYCHO_INCLUDE", [&](const std::string& text) { options.include(split(text)); });
  apply("TYCHO_EXCLUDE", [&](const std::string& text) { options.exclude(split(text)); });
  apply("TYCHO_SEED", [&](const std::string& text) {
    options.seed(parse_number<uint64_t>("TYCHO_SEED", text,
                                        "a whole number from 0 to 2^64 - 1 is expected"));
  });
  apply("TYCHO_RUN_NAME", [&](const std::string& text) { options.run_name(text); });
  apply("TYCHO_TAGS", [&](const std::string& text) { options.tags(split(text)); });
  apply("TYCHO_DURABILITY", [&](const std::string& text) {
    for (const Durability value : {Durability::drop, Durability::complete}) {
      if (text == text_of(value)) return void(options.durability(value));
    }
    refuse("TYCHO_DURABILITY", text, "drop or complete is expected");
  });
  apply("TYCHO_RESUME", [&](const std::string& text) {
    options.resume(parse_number<int64_t>("TYCHO_RESUME", text, "a step of at least 0 is expected"));
  });
  apply("TYCHO_EXCLUSIVE",
        [&](const std::string& text) { options.exclusive(parse_flag("TYCHO_EXCLUSIVE", text)); });
  apply("TYCHO_TAPE",
        [&](const std::string& text) { options.tape(parse_flag("TYCHO_TAPE", text)); });
  apply("TYCHO_TAPE_MEMORY", [&](const std::string& text) {
    options.tape_memory(
        parse_number<int64_t>("TYCHO_TAPE_MEMORY", text, "a number of MiB is expected"));
  });
  return options;
}

std::map<std::string, std::string> option_texts(const SessionOptions& options) {
  return {
      {"preset", text_of(options.preset())},
      {"overhead_budget",
       options.overhead_budget() ? fmt::format("{}", *options.overhead_budget()) : "none"},
      {"early_budget", fmt::format("{},{}", options.early_share(), options.early_seconds())},
      {"schedule", text_of(options.schedule())},
      {"every", join(options.every())},
      {"log_spaced", join(options.log_spaced())},
      {"loss_reduction", text_of(options.loss_reduction())},
      {"batch_dim", std::to_string(options.batch_dim())},
      {"include", fmt::format("{}", fmt::join(options.include(), ","))},
      {"exclude", fmt::format("{}", fmt::join(options.exclude(), ","))},
      {"seed", std::to_string(options.seed())},
      {"run_name", options.run_name()},
      {"tags", fmt::format("{}", fmt::join(options.tags(), ","))},
      {"durability", text_of(options.durability())},
      {"resume", options.resume() ? std::to_string(*options.resume()) : ""},
      {"exclusive", options.is_exclusive() ? "1" : "0"},
      {"tape", options.tape() ? "1" : "0"},
      {"tape_memory", std::to_string(options.tape_memory())},
  };
}

bool matches(const std::string& pattern, const std::string& text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string::npos;
  size_t retry = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      retry = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string::npos) {
      p = star + 1;
      t = ++retry;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace tycho
