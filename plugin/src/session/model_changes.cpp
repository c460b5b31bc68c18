#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "built_in.h"
#include "session/session_impl.h"

namespace tycho {
namespace {

// Each begins a segment of the trace.
constexpr int64_t kMostModelChanges = 2000;

std::string sizes_of(const v1::Parameter& parameter) {
  return fmt::format("[{}]", fmt::join(parameter.shape(), ", "));
}

std::string sizes_of(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

auto find_named(const std::vector<ParameterInfo>& parameters, const std::string& name) {
  return std::find_if(parameters.begin(), parameters.end(),
                      [&](const ParameterInfo& info) { return info.name == name; });
}

/// By new id, the old one of the same name.
template <typename Infos, typename Name>
std::map<uint32_t, uint32_t> matched(const Infos& before, const Infos& now, const Name& name) {
  std::map<std::string, uint32_t> old;
  for (const auto& info : before) old.emplace(name(info), info.id);
  std::map<uint32_t, uint32_t> ids;
  for (const auto& info : now) {
    const auto found = old.find(name(info));
    if (found != old.end()) ids.emplace(info.id, found->second);
  }
  return ids;
}

}  // namespace

bool Session::Impl::model_changed() const {
  return !same_tensors(held_tensors(optimizers), optimizer_tensors) ||
         !same_tensors(source.tensors(), model_tensors);
}

void Session::Impl::drop_observation() {
  if (hooked) (void)observer->uninstall(0);
  hooked = false;
  tapes->drop_step();
  due.erase(std::remove_if(due.begin(), due.end(),
                           [&](size_t index) { return probes[index].name != "loss"; }),
            due.end());
  due_needs = Needs();
  event(v1::Event::NOT_OBSERVED, "model_changed_in_step",
        "parameters were replaced, added or removed in a step: for such a step only the loss is "
        "recorded, and the new parameters are observed from the next observed step on",
        v1::SCOPE_RUN, 0);
}

void Session::Impl::say_removed(const ModelFacts& now) {
  for (const ParameterInfo& parameter : facts.info.parameters) {
    if (find_named(now.info.parameters, parameter.name) != now.info.parameters.end()) continue;
    event(v1::Event::NOTICE, "parameter_removed",
          fmt::format("{} {} has left the model; its records end here", parameter.name,
                      sizes_of(facts.description.parameter(static_cast<int>(parameter.id)))),
          v1::SCOPE_PARAMETER, parameter.id);
  }
}

void Session::Impl::say_joined(const ModelFacts& before, const ModelFacts& now) {
  for (const ParameterInfo& parameter : now.info.parameters) {
    const v1::Parameter& described = now.description.parameter(static_cast<int>(parameter.id));
    const std::string untrained =
        described.parameter_group() < 0
            ? "; the session knows no optimizer that holds it: give it to the optimizer "
              "(add_param_group) if it is to be trained"
            : "";
    const auto old = find_named(before.info.parameters, parameter.name);
    if (old == before.info.parameters.end()) {
      event(v1::Event::NOTICE, "parameter_added",
            fmt::format("{} {} has joined the model{}", parameter.name, sizes_of(described),
                        untrained),
            v1::SCOPE_PARAMETER, parameter.id);
      continue;
    }
    if (old->tensor.is_same(parameter.tensor)) continue;
    event(v1::Event::NOTICE, "parameter_replaced",
          fmt::format("{} is now another tensor: {}, before {}{}", parameter.name,
                      sizes_of(described),
                      sizes_of(before.description.parameter(static_cast<int>(old->id))), untrained),
          v1::SCOPE_PARAMETER, parameter.id);
  }
}

void Session::Impl::check_optimizer(bool changed) {
  std::vector<at::Tensor> strangers;
  for (const at::Tensor& tensor : optimizer_tensors) {
    if (tensor.defined() && !contains(model_tensors, tensor)) strangers.push_back(tensor);
  }
  if (strangers.empty()) return;
  notice(changed ? "optimizer_holds_removed" : "optimizer_holds_unregistered",
         fmt::format("the optimizer holds {} {} that the model does not{} (the first has shape "
                     "{}): what it does to them is not observed. Register parameters that "
                     "operators use (register_parameter, register_module); if it is a second "
                     "network, pass it to the session as one of several modules",
                     strangers.size(), strangers.size() == 1 ? "tensor" : "tensors",
                     changed ? ", since parameters were replaced or removed in training" : "",
                     sizes_of(strangers[0])));
}

void Session::Impl::renew_probes() {
  std::map<std::string, std::unique_ptr<Probe>> fresh;
  for (BuiltInProbe& built_in : built_in_probes()) {
    const std::string name = built_in.probe->name();
    fresh.emplace(name, std::move(built_in.probe));
  }
  for (ProbeEntry& entry : probes) {
    const auto found = fresh.find(entry.name);
    if (found != fresh.end()) entry.probe = std::move(found->second);
  }
}

void Session::Impl::rebind() {
  if (++model_changes > kMostModelChanges) {
    throw std::runtime_error(
        fmt::format("parameters were replaced, added or removed {} times", kMostModelChanges));
  }
  harvest(true);
  ModelFacts now = source.describe();
  if (now.info.parameters.empty()) throw std::runtime_error("the model has no parameters left");
  model_tensors = source.tensors();
  optimizer_tensors = held_tensors(optimizers);
  const ModelInfo all = now.info;
  select_layers(options, &now);
  const bool described_alike =
      now.description.SerializeAsString() == facts.description.SerializeAsString();
  say_removed(now);
  if (!described_alike) {
    trace->change_model(now.description,
                        matched(facts.info.parameters, now.info.parameters,
                                [](const ParameterInfo& info) { return info.name; }),
                        matched(facts.info.layers, now.info.layers,
                                [](const LayerInfo& info) { return info.path; }));
    renew_probes();
    structure_known = false;
    written_structure.clear();
    written_settings.clear();
  }
  std::swap(facts, now);
  say_joined(now, facts);
  check_optimizer(true);
  losses->set_parameters(parameters_of_losses(all));
  losses->withdraw_tapes();
  tapes = make_tapes(all);
  due_needs |= tapes->needs(due_needs);
  for (ProbeEntry& entry : probes) entry.probe->setup(facts.info);
  observer = make_observer();
  snapshot.invalidate();
}

}  // namespace tycho
