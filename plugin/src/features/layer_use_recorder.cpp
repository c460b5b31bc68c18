#include "features/layer_use_recorder.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <memory>

#include "features/edge_gradients.h"
#include "features/layer_call.h"
#include "operator_arguments.h"

namespace tycho {

LayerUseRecorder::LayerUseRecorder(const ModelInfo& model, ParameterMap* map)
    : model_(model), map_(map), why_not_(model.layers.size()) {}

std::optional<size_t> LayerUseRecorder::find_merge(const WatchedCall& call) const {
  if (call.parameters.size() != 1 || (call.name != "aten::add" && call.name != "aten::add_") ||
      call.arguments.size() < 3 || !is_one(call.arguments[2])) {
    return std::nullopt;
  }
  const ParameterArgument& bias = call.parameters[0];
  if (!bias.why_not.empty() || bias.position > 1) return std::nullopt;
  const size_t other = 1 - bias.position;
  if (!call.arguments[other].isTensor()) return std::nullopt;
  if (call.name == "aten::add_" && other != 0) return std::nullopt;
  const at::Tensor tensor = call.arguments[other].toTensor();
  const auto number = last_outputs_.find(tensor);
  if (!number) return std::nullopt;
  const LayerUse& use = found_.uses[*number];
  const ParameterInfo& parameter = model_.parameters[bias.parameter];
  if (use.layer != parameter.layer || use.bias != LayerUse::kNone || use.weight == parameter.id ||
      bias.argument.dim() > tensor.dim()) {
    return std::nullopt;
  }
  return number;
}

void LayerUseRecorder::record(const WatchedCall& call, const at::Tensor& output,
                              const BatchRecorder& batch) {
  if (merges_) return merge(*merges_, call, output);
  for (const ParameterArgument& argument : call.parameters) {
    record_use(call, argument, output, batch);
  }
}

void LayerUseRecorder::merge(size_t number, const WatchedCall& call, const at::Tensor& output) {
  LayerUse& use = found_.uses[number];
  use.bias = call.parameters[0].parameter;
  const auto layer_call =
      std::const_pointer_cast<LayerCall>(std::static_pointer_cast<const LayerCall>(use.op));
  layer_call->set_bias(call.parameters[0].argument, model_.parameters[use.bias].tensor);
  use.output = output.detach();
  versions_[number] = use.output._version();
  found_.edges[number] = edge_of(output);
  last_outputs_.set(output, number);
}

void LayerUseRecorder::record_use(const WatchedCall& call, const ParameterArgument& argument,
                                  const at::Tensor& output, const BatchRecorder& batch) {
  const ParameterInfo& parameter = model_.parameters[argument.parameter];
  std::string why_not = argument.why_not;
  std::shared_ptr<LayerCall> layer_call;
  if (why_not.empty()) {
    layer_call =
        LayerCall::make(call.name, call.arguments, argument.position, parameter.tensor, &why_not);
  }
  if (layer_call) {
    const at::Tensor operand = call.arguments[layer_call->operand()].toTensor();
    // Gains of reparametrised weights multiply what does not depend on the examples.
    if (map_->find(operand) ||
        (layer_call->kind() == LayerOperator::Kind::kScale && !batch.carries(operand))) {
      why_not =
          fmt::format("{} combines it with something that is not made of examples", call.name);
      layer_call.reset();
    }
  }
  if (!layer_call) {
    if (!why_not.empty()) why_not_[parameter.layer] = why_not;
    return;
  }
  LayerUse use;
  use.layer = parameter.layer;
  use.weight = parameter.id;
  use.input = call.arguments[layer_call->operand()].toTensor().detach();
  use.output = output.detach();
  if (const auto position = layer_call->bias_position();
      position && *position < call.arguments.size()) {
    for (const ParameterArgument& other : call.parameters) {
      const ParameterInfo& bias = model_.parameters[other.parameter];
      if (other.position != *position || bias.layer != parameter.layer) continue;
      layer_call->set_bias(other.argument, bias.tensor);
      use.bias = other.parameter;
    }
  }
  // In-place multiplication: its input is what it writes to.
  if (shares_storage(use.input, use.output) && call.name.back() == '_') {
    why_not_[parameter.layer] = fmt::format("{} overwrites its input", call.name);
    return;
  }
  use.op = layer_call;
  if (layer_call->kind() == LayerOperator::Kind::kLinear) last_linear_ = use.layer;
  found_.edges.push_back(edge_of(output));
  versions_.push_back(use.output._version());
  last_outputs_.set(output, found_.uses.size());
  found_.uses.push_back(std::move(use));
}

void LayerUseRecorder::reject(const WatchedCall& call, const std::string& why) {
  for (const ParameterArgument& argument : call.parameters) {
    why_not_[model_.parameters[argument.parameter].layer] = why;
  }
}

void LayerUseRecorder::protect(const at::Tensor& target) {
  for (size_t i = 0; i < found_.uses.size(); ++i) {
    LayerUse& use = found_.uses[i];
    if (shares_storage(use.input, target)) use.input = use.input.clone();
    if (shares_storage(use.output, target)) {
      use.output = use.output.clone();
      versions_[i] = use.output._version();
    }
  }
}

LayerUseRecorder::Uses LayerUseRecorder::take() {
  Uses kept;
  for (size_t i = 0; i < found_.uses.size(); ++i) {
    LayerUse& use = found_.uses[i];
    // Whoever writes to it without an operator's name saying so.
    if (use.output._version() != versions_[i]) {
      why_not_[use.layer] = "its output was changed in place";
      continue;
    }
    kept.uses.push_back(std::move(use));
    kept.edges.push_back(std::move(found_.edges[i]));
  }
  found_ = {};
  versions_.clear();
  last_outputs_.clear();
  merges_.reset();
  last_linear_.reset();
  return kept;
}

}  // namespace tycho
