#include "structure/structure_tracer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <exception>
#include <unordered_set>

#include "structure/operator_rules.h"

namespace tycho::structure {
namespace {

// Nodes looked at when something unknown has to be traced back to what is known.
constexpr size_t kMostNodes = 100000;
constexpr size_t kMostSources = 64;

bool only_reshapes(std::string_view name) {
  static const std::unordered_set<std::string_view> names = {
      "view",       "reshape",          "flatten", "unflatten", "squeeze",      "unsqueeze",
      "transpose",  "permute",          "t",       "swapaxes",  "swapdims",     "contiguous",
      "clone",      "expand",           "alias",   "to",        "_unsafe_view", "expand_as",
      "reshape_as", "view_as",          "chunk",   "split",     "select",       "slice",
      "narrow",     "split_with_sizes", "unbind"};
  return names.count(name) > 0;
}

bool is_nonlinearity(std::string_view name) {
  static const std::unordered_set<std::string_view> names = {
      "relu", "leaky_relu", "gelu",      "tanh",        "sigmoid",  "silu",
      "elu",  "selu",       "softplus",  "mish",        "hardtanh", "relu6",
      "celu", "threshold",  "hardswish", "hardsigmoid", "prelu"};
  return names.count(name) > 0;
}

std::string full_name(std::string_view name) { return "aten::" + std::string(name); }

}  // namespace

const Value* Call::value(size_t i) const {
  const Argument* argument = at(i);
  return argument != nullptr && argument->kind == Argument::Kind::kValue ? argument->value.get()
                                                                         : nullptr;
}

bool Call::is_parameter(size_t i) const {
  const Argument* argument = at(i);
  return argument != nullptr && argument->kind == Argument::Kind::kParameter;
}

int64_t Call::integer(size_t i, int64_t otherwise) const {
  const Argument* argument = at(i);
  return argument != nullptr && argument->plain.isInt() ? argument->plain.toInt() : otherwise;
}

bool Call::flag(size_t i, bool otherwise) const {
  const Argument* argument = at(i);
  return argument != nullptr && argument->plain.isBool() ? argument->plain.toBool() : otherwise;
}

double Call::number(size_t i, double otherwise) const {
  const Argument* argument = at(i);
  if (argument == nullptr || !argument->plain.isScalar()) return otherwise;
  return argument->plain.toScalar().toDouble();
}

StructureTracer::StructureTracer(const ModelInfo& model, WorkMeter* hooks)
    : model_(model),
      map_(model),
      parameters_(model.parameters.size()),
      shared_(std::make_shared<Shared>()) {
  shared_->meter = hooks;
}

StructureTracer::~StructureTracer() {
  std::lock_guard lock(shared_->mutex);
  shared_->active = false;
}

void StructureTracer::set_paused(bool paused) { paused_ = paused; }

std::optional<uint32_t> StructureTracer::parameter_of(const at::Tensor& tensor) const {
  return map_.find(tensor);
}

std::shared_ptr<const Value> StructureTracer::find_value(const at::Tensor& tensor) {
  const auto& node = tensor.grad_fn();
  if (!node) return nullptr;
  const auto found = values_.find(node.get());
  if (found == values_.end()) return nullptr;
  if (found->second.node.expired()) {
    values_.erase(found);
    return nullptr;
  }
  const auto value = found->second.outputs.find(static_cast<uint32_t>(tensor.output_nr()));
  return value == found->second.outputs.end() ? nullptr : value->second;
}

void StructureTracer::break_value(const Value& value) {
  if (value.channels >= 0) classes_.break_all(value.channels);
}

// A tensor that comes from operators that were not seen (a custom function, a view that was
// regenerated): whatever they read is used in a way that is not known.
void StructureTracer::break_ancestors(const at::Tensor& tensor) {
  std::vector<torch::autograd::Node*> open = {tensor.grad_fn().get()};
  std::unordered_set<torch::autograd::Node*> seen;
  while (!open.empty() && seen.size() < kMostNodes) {
    torch::autograd::Node* node = open.back();
    open.pop_back();
    if (node == nullptr || !seen.insert(node).second) continue;
    const auto known = values_.find(node);
    if (known != values_.end() && !known->second.node.expired()) {
      for (const auto& [number, value] : known->second.outputs) break_value(*value);
      continue;
    }
    for (const auto& edge : node->next_edges()) open.push_back(edge.function.get());
  }
}

void StructureTracer::remember(const at::Tensor& tensor, Value value) {
  const auto& node = tensor.grad_fn();
  if (!node) return;
  NodeValues& entry = values_[node.get()];
  if (entry.node.lock() != node) {
    entry.node = node;
    entry.outputs.clear();
  }
  entry.outputs[static_cast<uint32_t>(tensor.output_nr())] =
      std::make_shared<const Value>(std::move(value));
}

Argument StructureTracer::describe(const c10::IValue& input) {
  Argument result;
  if (input.isTensorList()) {
    for (const at::Tensor& tensor : input.toTensorVector()) result.list.push_back(describe(tensor));
    return result;
  }
  if (!input.isTensor()) {
    result.plain = input;
    return result;
  }
  result.tensor = input.toTensor();
  result.kind = Argument::Kind::kConstant;
  if (!result.tensor.defined() || !result.tensor.requires_grad()) return result;
  if (const auto id = parameter_of(result.tensor)) {
    result.kind = Argument::Kind::kParameter;
    result.parameter = *id;
    return result;
  }
  if (auto value = find_value(result.tensor)) {
    result.kind = Argument::Kind::kValue;
    result.value = std::move(value);
  } else if (result.tensor.grad_fn()) {
    break_ancestors(result.tensor);
  }
  return result;
}

bool StructureTracer::before(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  if (paused_) return false;
  call_ = Call();
  try {
    bool tracked = false;
    for (const c10::IValue& input : inputs) {
      call_.arguments.push_back(describe(input));
      const Argument& argument = call_.arguments.back();
      const auto follows = [](const Argument& a) {
        return a.kind == Argument::Kind::kValue || a.kind == Argument::Kind::kParameter;
      };
      tracked = tracked || follows(argument) ||
                std::any_of(argument.list.begin(), argument.list.end(), follows);
    }
    if (!tracked) return false;
    std::string_view bare = name;
    if (bare.substr(0, 6) == "aten::") bare.remove_prefix(6);
    if (bare.size() > 1 && bare.back() == '_') bare.remove_suffix(1);
    call_.name = bare;
    return true;
  } catch (const std::exception&) {
    for (ParameterState& parameter : parameters_) parameter.tainted = true;
    return false;
  }
}

void StructureTracer::after(const std::vector<c10::IValue>& results) {
  try {
    std::vector<at::Tensor> outputs;
    for (const c10::IValue& result : results) {
      if (result.isTensor()) outputs.push_back(result.toTensor());
      if (result.isTensorList()) {
        for (const at::Tensor& tensor : result.toTensorVector()) outputs.push_back(tensor);
      }
    }
    const bool differentiable = std::any_of(outputs.begin(), outputs.end(), [](const auto& out) {
      return out.defined() && out.requires_grad();
    });
    if (!differentiable) return;
    // A view of a parameter is not a use of it; what is done with the view is.
    if (std::all_of(outputs.begin(), outputs.end(),
                    [this](const auto& out) { return parameter_of(out).has_value(); })) {
      return;
    }
    std::vector<uint32_t> layers;
    std::vector<const Argument*> all;
    for (const Argument& argument : call_.arguments) {
      all.push_back(&argument);
      for (const Argument& element : argument.list) all.push_back(&element);
    }
    for (const Argument* argument : all) {
      if (argument->kind != Argument::Kind::kParameter) continue;
      const uint32_t layer = model_.parameters[argument->parameter].layer;
      if (std::find(layers.begin(), layers.end(), layer) == layers.end()) layers.push_back(layer);
    }
    note_edges(call_, layers);
    const auto sources =
        sources_of(call_, layers.empty() ? std::nullopt : std::make_optional(layers.front()));
    auto values = OperatorRules(this).apply(call_, outputs);
    if (!values) {
      for (const Argument* argument : all) {
        if (argument->kind == Argument::Kind::kValue) break_value(*argument->value);
        if (argument->kind == Argument::Kind::kParameter) taint(argument->parameter);
      }
      values.emplace();
      for (const at::Tensor& out : outputs) {
        values->push_back({out.defined() ? ChannelShape(out.sizes()) : ChannelShape(), -1, 1, {}});
      }
    }
    for (size_t i = 0; i < outputs.size() && i < values->size(); ++i) {
      if (!outputs[i].defined() || !outputs[i].requires_grad()) continue;
      Value value = std::move((*values)[i]);
      value.sources = sources;
      remember(outputs[i], std::move(value));
    }
  } catch (const std::exception&) {
    for (ParameterState& parameter : parameters_) parameter.tainted = true;
  }
  call_ = Call();
}

void StructureTracer::taint(uint32_t id) { parameters_[id].tainted = true; }

void StructureTracer::use_parameter(uint32_t id, ParameterUse use) {
  ParameterState& parameter = parameters_[id];
  if (map_.overlaps_another(id)) parameter.tainted = true;
  const auto break_slots = [this](const ParameterUse& of) {
    for (const auto& [dim, slot] : of.slots) classes_.break_all(slot.channels);
  };
  for (const ParameterUse& known : parameter.uses) {
    if (known.begin + known.count <= use.begin || use.begin + use.count <= known.begin) continue;
    if (known.begin != use.begin || known.count != use.count) {
      break_slots(known);
      break_slots(use);
      continue;
    }
    // Used twice: both uses have to scale it alike.
    for (const auto& [dim, slot] : use.slots) {
      const auto same = known.slots.find(dim);
      if (same == known.slots.end() || same->second.axes != slot.axes) {
        classes_.break_all(slot.channels);
      } else {
        classes_.join(same->second.channels, same->second.sign, slot.channels, slot.sign);
      }
    }
    for (const auto& [dim, slot] : known.slots) {
      const auto same = use.slots.find(dim);
      if (same == use.slots.end() || same->second.axes != slot.axes)
        classes_.break_all(slot.channels);
    }
  }
  parameter.uses.push_back(std::move(use));
}

std::shared_ptr<const std::vector<Source>> StructureTracer::sources_of(
    const Call& call, std::optional<uint32_t> layer) const {
  if (layer) return std::make_shared<const std::vector<Source>>(1, Source{*layer, {}});
  const bool reshapes = only_reshapes(call.name);
  std::shared_ptr<const std::vector<Source>> only;  // of the one value that has sources
  auto result = std::make_shared<std::vector<Source>>();
  const auto take = [&](const Argument& argument) {
    if (argument.kind != Argument::Kind::kValue || !argument.value->sources) return;
    only = result->empty() ? argument.value->sources : nullptr;
    for (Source source : *argument.value->sources) {
      if (!reshapes) source.via.push_back(call.name);
      const bool known = std::any_of(result->begin(), result->end(), [&](const Source& other) {
        return other.layer == source.layer && other.via == source.via;
      });
      if (!known && result->size() < kMostSources) result->push_back(std::move(source));
    }
  };
  for (const Argument& argument : call.arguments) {
    take(argument);
    for (const Argument& element : argument.list) take(element);
  }
  return reshapes && only ? only : result;
}

void StructureTracer::note_edges(const Call& call, const std::vector<uint32_t>& layers) {
  if (layers.empty() && !is_nonlinearity(call.name)) return;
  const auto look = [&](const Argument& argument) {
    if (argument.kind != Argument::Kind::kValue || !argument.value->sources) return;
    for (const Source& source : *argument.value->sources) {
      if (layers.empty() && source.via.empty()) {
        const auto fact = fact_of_layer_.find(source.layer);
        if (fact != fact_of_layer_.end() &&
            description_.fact(fact->second).nonlinearity().empty()) {
          description_.mutable_fact(fact->second)->set_nonlinearity(full_name(call.name));
        }
      }
      for (const uint32_t layer : layers) {
        if (source.layer == layer && source.via.empty()) continue;  // its own bias
        if (!edges_seen_.emplace(source.layer, layer, source.via).second) continue;
        v1::LayerEdge* edge = description_.add_edge();
        edge->set_from(source.layer);
        edge->set_to(layer);
        for (const std::string_view via : source.via) edge->add_via(full_name(via));
      }
    }
  };
  for (const Argument& argument : call.arguments) {
    look(argument);
    for (const Argument& element : argument.list) look(element);
  }
}

void StructureTracer::note_fact(uint32_t layer, std::string_view name, int64_t fan_in,
                                int64_t fan_out) {
  if (!fact_of_layer_.emplace(layer, description_.fact_size()).second) return;
  v1::LayerFact* fact = description_.add_fact();
  fact->set_layer(layer);
  fact->set_operator_name(full_name(name));
  fact->set_fan_in(static_cast<uint64_t>(fan_in));
  fact->set_fan_out(static_cast<uint64_t>(fan_out));
  fact->set_depth(static_cast<uint32_t>(description_.fact_size() - 1));
}

Structure StructureTracer::finish(double loss_scale) {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->active = false;
  }
  Structure result;
  collect_groups(&result, loss_scale);
  result.description.mutable_edge()->Swap(description_.mutable_edge());
  result.description.mutable_fact()->Swap(description_.mutable_fact());
  values_.clear();
  return result;
}

}  // namespace tycho::structure
