#include "happenings.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace tycho::analyzer {
namespace {

struct Remedy {
  const char* reason;  ///< part of the message
  const char* remedy;
};

constexpr const char* kMicrobatches =
    "Split the step into two or more backward passes (microbatches): the noise is then measured "
    "from their gradients, for any layer.";

// The first that matches.
const Remedy kRemedies[] = {
    {"at least two examples", "Use batches of two or more examples, or several backward passes."},
    {"is said to have",
     "Pass the number of examples in the batch to Session::step, and set "
     "SessionOptions::batch_dim to the dimension that counts them."},
    {"sparse", "Use dense gradients (Embedding with sparse(false))."},
    {"needs the network's output apart",
     "Give set_probe_loss a function that returns the network's "
     "output and the labels."},
    {"a probe loss", "Give the session a probe loss (Session::set_probe_loss)."},
    {"step loss", "Give the session a step loss (Session::set_step_loss)."},
    {"batch loss", "Give the session a batch loss (Session::set_batch_loss)."},
    {"per-example gradients are known", kMicrobatches},
    {"list of parameters", kMicrobatches},
    {"not one that is known", kMicrobatches},
    {"several outputs", kMicrobatches},
    {"view with gaps", kMicrobatches},
    {"batches of different sizes", kMicrobatches},
    {"uses overlap", kMicrobatches},
    {"not made of examples", kMicrobatches},
    {"as many examples as", kMicrobatches},
    {"do not add up", kMicrobatches},
};

std::string remedy_for(const std::string& message) {
  for (const Remedy& each : kRemedies) {
    if (message.find(each.reason) != std::string::npos) return each.remedy;
  }
  return "";
}

void replace_all(std::string* text, const std::string& from, const std::string& to) {
  for (size_t at = text->find(from); at != std::string::npos; at = text->find(from, at + to.size()))
    text->replace(at, from.size(), to);
}

/// gradient_noise_not_observed -> gradient noise.
std::string subject_of(const std::string& code) {
  std::string text = code;
  const std::string ending = "_not_observed";
  if (text.size() > ending.size() &&
      text.compare(text.size() - ending.size(), ending.size(), ending) == 0)
    text.resize(text.size() - ending.size());
  replace_all(&text, "_", " ");
  replace_all(&text, "per example", "per-example");
  return text;
}

struct Parsed {
  std::string reason;       ///< without the name of where it happened
  bool names_what = false;  ///< the reason alone does not say what was not observed
};

/// "Gradient noise of a.weight is not observed: why" and "a.weight: why" -> why; else the message
/// with the name taken out.
Parsed parse(const v1::Event& event, const std::string& name) {
  Parsed result;
  result.reason = event.message().empty() ? subject_of(event.code()) : event.message();
  replace_all(&result.reason, "aten::", "");
  if (name.empty()) return result;
  const size_t at = result.reason.find(name);
  if (at == std::string::npos) return result;
  const size_t colon = result.reason.find(": ", at + name.size());
  if (event.kind() == v1::Event::NOT_OBSERVED && colon != std::string::npos) {
    result.reason = result.reason.substr(colon + 2);
    result.names_what = true;
  } else {
    replace_all(&result.reason, name, "it");
  }
  return result;
}

std::string entity_name(const Report& report, const v1::Event& event) {
  const auto id = static_cast<int>(event.entity());
  if (event.scope() == v1::SCOPE_PARAMETER &&
      event.entity() < static_cast<uint32_t>(report.model.parameter_size()))
    return report.model.parameter(id).name();
  if (event.scope() == v1::SCOPE_LAYER &&
      event.entity() < static_cast<uint32_t>(report.model.layer_size()))
    return report.model.layer(id).path();
  return "";
}

/// The module of a parameter; the parameter itself where the root holds it.
std::string module_name(const Report& report, const v1::Event& event, const std::string& name) {
  if (event.scope() != v1::SCOPE_PARAMETER || name.empty()) return name;
  const uint32_t layer = report.model.parameter(static_cast<int>(event.entity())).layer();
  if (layer >= static_cast<uint32_t>(report.model.layer_size())) return name;
  const std::string& path = report.model.layer(static_cast<int>(layer)).path();
  return path.empty() ? name : path;
}

struct Group {
  Happening happening;
  std::set<std::string> codes;
  std::set<uint32_t> parameters;
  std::set<std::string> modules;
  bool names_what = false;
  std::string reason;
};

std::string sentence(const Group& group) {
  if (!group.names_what) return group.reason;
  // Noise is what a reader knows; it is had from per-example gradients.
  std::set<std::string> codes = group.codes;
  if (codes.count("gradient_noise_not_observed") > 0)
    codes.erase("per_example_gradients_not_observed");
  std::string subjects;
  for (const std::string& code : codes)
    subjects += (subjects.empty() ? "" : ", ") + subject_of(code);
  return fmt::format("{}: {}", subjects, group.reason);
}

}  // namespace

std::vector<Happening> happenings(const Report& report) {
  std::vector<Group> groups;
  std::map<std::pair<int, std::string>, size_t> index;
  for (const v1::Event& event : report.events) {
    const std::string name = entity_name(report, event);
    const Parsed parsed = parse(event, name);
    const auto [found, inserted] =
        index.try_emplace({static_cast<int>(event.kind()), parsed.reason}, groups.size());
    if (inserted) {
      groups.emplace_back();
      groups.back().happening.kind = event.kind();
      groups.back().happening.first_step = event.step();
      groups.back().reason = parsed.reason;
    }
    Group& group = groups[found->second];
    Happening& happening = group.happening;
    happening.first_step = std::min<int64_t>(happening.first_step, event.step());
    happening.times = std::max<uint64_t>(happening.times, event.count());
    group.codes.insert(event.code());
    group.names_what = group.names_what || parsed.names_what;
    if (event.scope() == v1::SCOPE_PARAMETER && !name.empty())
      group.parameters.insert(event.entity());
    const std::string module = module_name(report, event, name);
    if (!module.empty() && group.modules.insert(module).second) happening.modules.push_back(module);
  }
  std::vector<Happening> result;
  for (Group& group : groups) {
    group.happening.parameters = group.parameters.size();
    group.happening.what = sentence(group);
    if (group.happening.kind == v1::Event::NOT_OBSERVED)
      group.happening.remedy = remedy_for(group.reason);
    result.push_back(std::move(group.happening));
  }
  std::stable_sort(result.begin(), result.end(), [](const Happening& a, const Happening& b) {
    return a.first_step < b.first_step;
  });
  return result;
}

std::string where(const Happening& happening, size_t most_modules) {
  std::string text;
  const size_t shown = std::min(happening.modules.size(), std::max<size_t>(1, most_modules));
  for (size_t i = 0; i < shown; ++i) text += (i == 0 ? "" : ", ") + happening.modules[i];
  if (happening.modules.size() > shown)
    text += fmt::format(" and {} more", happening.modules.size() - shown);
  if (happening.parameters > 1) text += fmt::format(" ({} parameters)", happening.parameters);
  return text;
}

std::vector<HappeningGroup> happening_groups(const Report& report) {
  std::vector<HappeningGroup> groups = {{"What failed", {}},
                                        {"What was not observed, and what to do", {}},
                                        {"What happened", {}},
                                        {"How it was measured", {}}};
  for (Happening& each : happenings(report)) {
    size_t at = 2;
    if (each.kind == v1::Event::STOPPED || each.kind == v1::Event::RESUMED) continue;
    if (each.kind == v1::Event::FAULT) at = 0;
    if (each.kind == v1::Event::NOT_OBSERVED) at = 1;
    if (each.kind == v1::Event::METHOD) at = 3;
    groups[at].happenings.push_back(std::move(each));
  }
  groups.erase(std::remove_if(groups.begin(), groups.end(),
                              [](const HappeningGroup& g) { return g.happenings.empty(); }),
               groups.end());
  return groups;
}

}  // namespace tycho::analyzer
