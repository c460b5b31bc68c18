#include "features/probe_pass.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "error_text.h"
#include "operator_arguments.h"
#include "torch_compat.h"

#ifndef NDEBUG
#error "record_function.h has another layout without NDEBUG than in a release LibTorch"
#endif

namespace tycho {
namespace {

using torch::autograd::Edge;

/// The first line: LibTorch appends where in its sources it happened.
bool shares_storage(const at::Tensor& left, const at::Tensor& right) {
  return left.defined() && right.defined() && left.has_storage() && right.has_storage() &&
         left.storage().unsafeGetStorageImpl() == right.storage().unsafeGetStorageImpl();
}

Edge edge_of(const at::Tensor& tensor) {
  return tensor.requires_grad() ? torch::autograd::impl::gradient_edge(tensor) : Edge();
}

}  // namespace

void ProbePass::Chunk::drop_graph() {
  for (Edge& edge : edges) edge = Edge();
  for (ParameterUse& use : parameter_uses) use.edge = Edge();
  output = output.defined() ? output.detach() : output;
  loss = loss.defined() ? loss.detach() : loss;
}

ProbePass::ProbePass(const ProbeLoss& loss, SavedState& state, const ModelInfo& model,
                     const std::vector<ProbeLossSurface::Parameter>& parameters, int64_t batch_dim,
                     const Needs& needs, ProbePassMemory* memory)
    : loss_(loss),
      state_(state),
      model_(model),
      batch_dim_(batch_dim),
      with_gradients_(needs.probe_feature_gradients),
      with_attention_(needs.probe_attention),
      memory_(memory),
      unrecognised_(model.layers.size()),
      map_(model),
      flow_([this](const at::Tensor& tensor) { return map_.touches(tensor); }) {
  for (const ProbeLossSurface::Parameter& parameter : parameters) {
    if (parameter.tensor.requires_grad()) parameters_.push_back(parameter.tensor);
  }
}

void ProbePass::evaluate(const std::function<void()>& action) const {
  const at::DisableRecordFunctionGuard unobserved;
  try {
    action();
  } catch (const LossError&) {
    throw;
  } catch (const NoProducts&) {
    throw;
  } catch (const std::exception& error) {
    fail(first_line(error));
  } catch (...) {
    fail("an exception that is no std::exception");
  }
}

void ProbePass::begin() {
  state_.begin();
  if (state_.moved()) state_.move({});
  if (memory_->begun) return;
  memory_->begun = true;
  memory_->generators = state_.generator_states();
}

ProbePass::Chunk ProbePass::run_chunk(int64_t chunk) {
  Chunk result;
  result.batch.dim = batch_dim_;
  evaluate([&] {
    // Whether or not gradients are asked for here: the loss may take some itself.
    const at::AutoGradMode with_gradients(true);
    state_.rewind(memory_->generators);
    flow_.clear();
    tainted_.clear();
    last_outputs_.clear();
    softmaxes_.clear();
    passes_on_.clear();
    positions_.clear();
    pending_.clear();
    failure_.clear();
    now_ = &result;
    {
      const ExclusiveOperatorWatch watch(this);
      if (loss_.output) result.output = loss_.output(chunk);
      result.loss = loss_.loss(result.output, chunk);
    }
    now_ = nullptr;
  });
  now_ = nullptr;
  arguments_.clear();
  pending_.clear();
  last_outputs_.clear();
  softmaxes_.clear();
  passes_on_.clear();
  positions_.clear();
  tainted_.clear();
  if (!failure_.empty()) fail(failure_);
  if (loss_.output && !result.output.defined()) fail("its output is not a tensor");
  for (size_t i = 0; i < result.uses.size(); ++i) {
    const auto& [tensor, version] = result.versions[i];
    // Whoever writes to it without an operator's name saying so.
    if (tensor.defined() && tensor._version() != version) {
      unrecognised_[result.uses[i].layer] = "its output was changed in place";
      result.uses[i].output = at::Tensor();
    }
  }
  result.versions.clear();
  if (!with_gradients_) result.drop_graph();
  return result;
}

void ProbePass::run() {
  if (ran_) return;
  ran_ = true;
  begin();
  for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
    if (held_ >= 0) chunks_[static_cast<size_t>(held_)].drop_graph();
    chunks_.push_back(run_chunk(chunk));
    held_ = chunk;
    Chunk& now = chunks_.back();
    for (LayerUse& use : now.uses) use.chunk = chunk;
    if (now.output.defined()) outputs_.push_back(now.output.detach());
  }
  finish();
}

/// Gathers what the chunks have, and says what there is not.
void ProbePass::finish() {
  ran_all_ = true;
  std::vector<bool> used(model_.layers.size(), false);
  std::vector<at::Tensor> data;
  for (Chunk& chunk : chunks_) {
    std::vector<LayerUse> kept;
    std::vector<Edge> edges;
    for (size_t i = 0; i < chunk.uses.size(); ++i) {
      if (!chunk.uses[i].output.defined()) continue;
      used[chunk.uses[i].layer] = true;
      kept.push_back(chunk.uses[i]);
      edges.push_back(chunk.edges[i]);
    }
    chunk.uses.clear();
    chunk.edges = std::move(edges);
    uses_.insert(uses_.end(), kept.begin(), kept.end());
    attention_.insert(attention_.end(), chunk.attention.begin(), chunk.attention.end());
    chunk.attention.clear();
    data.insert(data.end(), chunk.data.begin(), chunk.data.end());
    chunk.data.clear();
  }
  for (const LayerInfo& layer : model_.layers) {
    if (used[layer.id]) continue;
    const std::string& why = unrecognised_[layer.id];
    notice(v1::Event::NOT_OBSERVED, "features_not_observed",
           fmt::format("{} has no features in the probe loss: {}", layer.path,
                       why.empty() ? "no operator was seen to use its weight" : why),
           v1::SCOPE_LAYER, layer.id);
  }
  if (memory_->data.empty()) memory_->data = data;
  comparable_ = data.size() == memory_->data.size();
  for (size_t i = 0; comparable_ && i < data.size(); ++i) {
    comparable_ =
        data[i].sizes() == memory_->data[i].sizes() && at::equal(data[i], memory_->data[i]);
  }
  if (!comparable_) {
    notice(v1::Event::NOT_OBSERVED, "probe_batch_changed",
           "the probe loss is not on the data of its first evaluation: what compares features with "
           "earlier ones is not recorded",
           v1::SCOPE_RUN, 0);
  }
}

void ProbePass::notice(v1::Event::Kind kind, std::string code, std::string message, v1::Scope scope,
                       uint32_t entity) {
  notices_.push_back({kind, std::move(code), std::move(message), scope, entity});
}

std::vector<ObserverNotice> ProbePass::take_notices() { return std::exchange(notices_, {}); }

const std::vector<LayerUse>& ProbePass::uses() {
  run();
  return uses_;
}

bool ProbePass::comparable() {
  run();
  return comparable_;
}

const std::vector<AttentionUse>& ProbePass::attention() {
  run();
  return attention_;
}

const std::vector<at::Tensor>& ProbePass::outputs() {
  run();
  return outputs_;
}

int64_t ProbePass::examples(int64_t chunk) {
  run();
  return chunks_[static_cast<size_t>(chunk)].batch.size;
}

at::Tensor ProbePass::by_example(const LayerUse& use, const at::Tensor& output) {
  run();
  const per_example::Batch& batch = chunks_[static_cast<size_t>(use.chunk)].batch;
  if (use.op->kind() == LayerOperator::Kind::kConvolution &&
      (batch.dim != 0 || output.dim() < 3 || output.size(0) != batch.size)) {
    return {};
  }
  const at::Tensor rows = per_example::by_example(output, 1, batch);
  return rows.defined() ? rows.reshape({batch.size, -1}) : rows;
}

at::Tensor ProbePass::output_rows(const Chunk& chunk, const at::Tensor& output) const {
  if (!output.is_floating_point() || output.dim() == 0) return {};
  const at::Tensor rows = per_example::by_example(output, output.dim() > 1 ? 1 : 0, chunk.batch);
  return rows.defined() ? rows.reshape({chunk.batch.size, -1}) : rows;
}

at::Tensor ProbePass::targets(int64_t chunk) {
  if (!has_output()) return {};
  run();
  const at::Tensor& output = outputs_[static_cast<size_t>(chunk)];
  if (!output.is_floating_point() || output.numel() == 0) return {};
  at::Tensor result;
  evaluate([&] {
    const at::AutoGradMode with_gradients(true);
    const auto slope = [&](const at::Tensor& at) {
      const at::Tensor leaf = at.detach().clone().requires_grad_(true);
      state_.rewind(memory_->generators);
      const at::Tensor value = loss_.loss(leaf, chunk);
      if (!value.defined() || value.numel() != 1 || !value.requires_grad()) return at::Tensor();
      const at::Tensor found =
          torch::autograd::grad({value}, {leaf}, {}, c10::nullopt, /*create_graph=*/false,
                                /*allow_unused=*/true)[0];
      return found.defined() ? found.detach() : found;
    };
    const at::Tensor here = slope(output);
    if (!here.defined()) return;
    const at::NoGradGuard no_grad;
    // Away from the output in both directions, at different distances.
    const at::Tensor step = at::arange(1, output.numel() + 1, output.options())
                                .mul_(0.7)
                                .sin_()
                                .mul_(1 + output.abs().mean())
                                .reshape(output.sizes());
    const double size = step.norm().item<double>();
    const bool wide = output.scalar_type() == at::kDouble;
    double curvature = 0;
    for (const double factor : {1.0, -3.0}) {
      at::Tensor there;
      {
        const at::AutoGradMode again(true);
        there = slope(output + factor * step);
      }
      if (!there.defined()) return;
      const at::Tensor bend = (there - here) / factor;
      const double found = (bend * step).sum(at::kDouble).item<double>() / (size * size);
      const double rest = (bend - found * step).norm().item<double>();
      if (!(found > 0) || !(rest <= (wide ? 1e-9 : 1e-4) * found * size)) return;
      if (curvature > 0 && std::abs(found - curvature) > (wide ? 1e-9 : 1e-4) * curvature) return;
      curvature = found;
    }
    result = output_rows(chunks_[static_cast<size_t>(chunk)], output - here / curvature);
  });
  return result;
}

at::Tensor ProbePass::labels(int64_t chunk) {
  if (!loss_.labels) return {};
  state_.begin();
  at::Tensor result;
  evaluate([&] {
    const at::NoGradGuard no_grad;
    const at::Tensor labels = loss_.labels(chunk);
    if (!labels.defined() || !at::isIntegralType(labels.scalar_type(), /*includeBool=*/false)) {
      notice(v1::Event::NOT_OBSERVED, "labels_not_classes",
             "the labels of the probe loss are not integers: they are not used", v1::SCOPE_RUN, 0);
      return;
    }
    result = labels.detach().to(at::kCPU, at::kLong).reshape({-1}).contiguous();
  });
  return result;
}

// Gradients.

void ProbePass::hold(int64_t chunk) {
  if (!no_gradients_.empty()) throw NoProducts(no_gradients_);
  run();
  if (!with_gradients_) fail("gradients of features were not asked for");
  if (held_ == chunk) return;
  chunks_[static_cast<size_t>(held_)].drop_graph();
  begin();
  Chunk again = run_chunk(chunk);
  Chunk& first = chunks_[static_cast<size_t>(chunk)];
  std::vector<Edge> edges;
  for (size_t i = 0; i < again.uses.size(); ++i) {
    if (again.uses[i].output.defined()) edges.push_back(again.edges[i]);
  }
  if (edges.size() != first.edges.size() ||
      again.parameter_uses.size() != first.parameter_uses.size()) {
    fail("it runs other operators when it is evaluated again");
  }
  first.edges = std::move(edges);
  first.parameter_uses = std::move(again.parameter_uses);
  first.output = again.output;
  first.loss = again.loss;
  held_ = chunk;
}

std::vector<at::Tensor> ProbePass::backward(const at::Tensor& root, const at::Tensor& seed,
                                            const std::vector<Edge>& edges) {
  std::vector<at::Tensor> all(edges.size());
  if (!root.requires_grad()) return all;
  std::vector<size_t> there;
  torch::autograd::edge_list wanted;
  for (size_t i = 0; i < edges.size(); ++i) {
    if (!edges[i].is_valid()) continue;
    there.push_back(i);
    wanted.push_back(edges[i]);
  }
  if (wanted.empty()) return all;
  const auto found = torch::autograd::Engine::get_default_engine().execute(
      {torch::autograd::impl::gradient_edge(root)}, {seed}, /*keep_graph=*/true,
      /*create_graph=*/false, /*accumulate_grad=*/false, wanted);
  for (size_t i = 0; i < there.size(); ++i) all[there[i]] = found[i];
  return all;
}

std::vector<at::Tensor> ProbePass::gradients(int64_t chunk, const at::Tensor& seed) {
  hold(chunk);
  Chunk& now = chunks_[static_cast<size_t>(chunk)];
  std::vector<at::Tensor> all(uses_.size());
  evaluate([&] {
    const at::AutoGradMode with_gradients(true);
    at::Tensor root = now.output;
    at::Tensor weights = seed;
    if (!seed.defined()) {
      if (!now.loss.defined() || now.loss.numel() != 1) fail("it is not a scalar");
      root = now.loss;
      weights = at::full_like(root, chunk_weight(chunk)).detach();
    }
    if (!root.defined()) fail("the network's output was not given apart from the loss");
    if (!root.requires_grad()) fail("it depends on no parameter, or was detached");
    const std::vector<at::Tensor> found = backward(root, weights, now.edges);
    size_t next = 0;
    for (size_t i = 0; i < uses_.size(); ++i) {
      if (uses_[i].chunk == chunk) all[i] = found[next++];
    }
  });
  return all;
}

std::vector<at::Tensor> ProbePass::loss_gradients() {
  std::vector<at::Tensor> sums(model_.parameters.size());
  run();
  std::vector<uint32_t> trained;
  for (const ParameterInfo& parameter : model_.parameters) {
    if (parameter.tensor.requires_grad()) trained.push_back(parameter.id);
  }
  for (int64_t i = 0; i < chunks(); ++i) {
    // The one that is held first.
    const int64_t chunk = (held_ + i) % chunks();
    hold(chunk);
    const Chunk& now = chunks_[static_cast<size_t>(chunk)];
    evaluate([&] {
      const at::AutoGradMode with_gradients(true);
      if (!now.loss.defined() || now.loss.numel() != 1) fail("it is not a scalar");
      if (!now.loss.requires_grad()) fail("it depends on no parameter, or was detached");
      const std::vector<at::Tensor> found = parameter_gradients(now.loss, trained);
      const at::NoGradGuard no_grad;
      for (size_t k = 0; k < trained.size(); ++k) {
        if (!found[k].defined()) continue;
        const at::Tensor part = found[k].detach() * chunk_weight(chunk);
        at::Tensor& sum = sums[trained[k]];
        sum = sum.defined() ? sum + part : part;
      }
    });
  }
  return sums;
}

std::vector<at::Tensor> ProbePass::parameters() {
  begin();
  std::vector<at::Tensor> copies;
  for (const at::Tensor& parameter : parameters_) copies.push_back(parameter.detach().clone());
  return copies;
}

/// J v by differentiating u -> J' u, which is linear, in u.
FeaturePass::Line ProbePass::line(int64_t chunk, const std::vector<at::Tensor>& from) {
  if (!no_gradients_.empty()) throw NoProducts(no_gradients_);
  if (!has_output()) fail("the network's output was not given apart from the loss");
  begin();
  std::vector<at::Tensor> way;
  double length = 0;
  double size = 0;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    way.push_back(parameters_[i].detach() - from[i]);
    length = std::hypot(length, way[i].norm().item<double>());
    size = std::hypot(size, from[i].norm().item<double>());
  }
  const auto output_here = [&] {
    const at::AutoGradMode with_gradients(true);
    state_.rewind(memory_->generators);
    return loss_.output(chunk);
  };
  Line result;
  const auto measure = [&] {
    const at::AutoGradMode with_gradients(true);
    state_.visit(from);
    const at::Tensor output = output_here();
    result.output = output.detach().reshape({-1});
    if (!output.requires_grad()) fail("the output depends on no parameter, or was detached");
    result.derivative = at::zeros_like(result.output);
    try {
      const at::Tensor seed = at::zeros_like(output).detach().requires_grad_(true);
      const auto parts = torch::autograd::grad({output}, parameters_, {seed}, /*retain_graph=*/true,
                                               /*create_graph=*/true, /*allow_unused=*/true);
      torch::autograd::variable_list reached;
      torch::autograd::variable_list along;
      for (size_t i = 0; i < parts.size(); ++i) {
        if (!parts[i].defined() || !parts[i].requires_grad()) continue;
        reached.push_back(parts[i]);
        along.push_back(way[i]);
      }
      if (!reached.empty()) {
        result.derivative = torch::autograd::grad(reached, {seed}, along)[0].detach().reshape({-1});
      }
      return;
    } catch (const std::exception&) {
      result.exact = false;
    }
    const at::NoGradGuard no_grad;
    const bool wide = result.output.scalar_type() == at::kDouble;
    const double step = length > 0 ? (wide ? 1e-5 : 1e-2) * std::max(size, 1e-3) / length : 1;
    const auto output_at = [&](double factor) {
      std::vector<at::Tensor> values;
      for (size_t i = 0; i < from.size(); ++i) values.push_back(at::add(from[i], way[i], factor));
      state_.visit(values);
      return output_here().detach().clone();
    };
    const at::Tensor above = output_at(step);
    result.derivative = ((above - output_at(-step)) / (2 * step)).reshape({-1});
  };
  try {
    evaluate(measure);
  } catch (...) {
    state_.move({});
    throw;
  }
  state_.move({});
  return result;
}

// While operators are watched.

std::optional<uint32_t> ProbePass::parameter_of(const at::Tensor& tensor) const {
  return map_.find(tensor);
}

bool ProbePass::tainted(const at::Tensor& tensor) const {
  if (!tensor.defined() || !tensor.has_storage()) return false;
  const auto found = tainted_.find(tensor.storage().unsafeGetStorageImpl());
  return found != tainted_.end() && !found->second.expired();
}

bool ProbePass::before(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  try {
    before_operator(name, inputs);
  } catch (const std::exception& error) {
    failure_ = first_line(error);
  }
  return true;
}

void ProbePass::after(const std::vector<c10::IValue>& outputs) {
  try {
    after_operator(outputs);
  } catch (const std::exception& error) {
    failure_ = first_line(error);
  }
  pending_.clear();
  arguments_.clear();
  merges_.reset();
  softmax_.reset();
  passed_on_.reset();
  added_.reset();
}

void ProbePass::before_operator(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  name_ = name;
  pending_.clear();
  merges_.reset();
  arguments_.clear();
  reads_parameters_ = false;
  const bool before_model = now_->batch.size == 0;
  if (flow_.before(name, inputs, batch_dim_, before_model)) now_->batch.rearranged = true;
  const auto look = [&](const at::Tensor& tensor, size_t position, bool in_list) {
    if (!tensor.defined()) return;
    const auto id = parameter_of(tensor);
    reads_parameters_ = reads_parameters_ || id || tainted(tensor);
    if (!id) return;
    Pending use{*id, position, tensor, ""};
    if (in_list) use.why_not = fmt::format("{} takes a list of parameters", name);
    if (map_.overlaps_another(*id)) {
      use.why_not = "it shares its memory with another parameter";
    }
    pending_.push_back(std::move(use));
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].isTensor()) look(inputs[i].toTensor(), i, false);
    if (inputs[i].isTensorList()) {
      for (const at::Tensor& tensor : inputs[i].toTensorVector()) look(tensor, i, true);
    }
  }
  if (with_gradients_ && !positions_.empty()) before_positions(inputs);
  if (with_attention_ && !ran_all_) before_attention(inputs);
  if (!pending_.empty()) {
    arguments_.assign(inputs.begin(), inputs.end());
    find_merge(name_);
  }
  const bool in_place = !name_.empty() && name_.back() == '_' && !inputs.empty();
  if (in_place && inputs[0].isTensor() && !merges_) protect(inputs[0].toTensor());
  if (in_place && inputs[0].isTensorList()) {
    for (const at::Tensor& tensor : inputs[0].toTensorVector()) protect(tensor);
  }
}

/// A bias that is added to the output of its layer belongs to that output.
void ProbePass::find_merge(std::string_view name) {
  if ((name != "aten::add" && name != "aten::add_") || pending_.size() != 1 ||
      arguments_.size() < 3 || !is_one(arguments_[2]) || !pending_[0].why_not.empty()) {
    return;
  }
  const size_t other = 1 - pending_[0].position;
  if (pending_[0].position > 1 || !arguments_[other].isTensor()) return;
  if (name == "aten::add_" && other != 0) return;
  const at::Tensor tensor = arguments_[other].toTensor();
  const auto found = last_outputs_.find(tensor.unsafeGetTensorImpl());
  if (found == last_outputs_.end() || found->second.tensor.expired()) return;
  const LayerUse& use = now_->uses[found->second.use];
  const ParameterInfo& parameter = model_.parameters[pending_[0].parameter];
  if (use.layer != parameter.layer || use.bias != LayerUse::kNone || use.weight == parameter.id ||
      pending_[0].argument.dim() > tensor.dim()) {
    return;
  }
  merges_ = found->second.use;
}

/// What was seen is copied before it is written to.
void ProbePass::protect(const at::Tensor& target) {
  if (!target.defined()) return;
  for (size_t i = 0; i < now_->uses.size(); ++i) {
    LayerUse& use = now_->uses[i];
    if (shares_storage(use.input, target)) use.input = use.input.clone();
    if (shares_storage(use.output, target)) {
      use.output = use.output.clone();
      now_->versions[i] = {use.output, use.output._version()};
    }
  }
  for (ParameterUse& use : now_->parameter_uses) {
    for (c10::IValue& argument : use.use.arguments) {
      if (argument.isTensor() && shares_storage(argument.toTensor(), target)) {
        argument = argument.toTensor().clone();
      }
    }
  }
}

void ProbePass::after_operator(const std::vector<c10::IValue>& results) {
  flow_.after(results);
  if (with_attention_ && !ran_all_) after_attention(results);
  const auto taint = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.has_storage() || parameter_of(tensor)) return;
    const auto* storage = tensor.storage().unsafeGetStorageImpl();
    if (reads_parameters_) {
      tainted_.insert_or_assign(storage, tensor.storage().getWeakStorageImpl());
    }
  };
  for (const c10::IValue& result : results) {
    if (result.isTensor()) taint(result.toTensor());
    if (result.isTensorList()) {
      for (const at::Tensor& tensor : result.toTensorVector()) taint(tensor);
    }
  }
  if (added_ && !results.empty() && results[0].isTensor()) {
    after_positions(results[0].toTensor());
  }
  if (pending_.empty()) return;
  if (results.empty() || !results[0].isTensor() || !results[0].toTensor().defined()) {
    for (const Pending& use : pending_) {
      unrecognised_[model_.parameters[use.parameter].layer] =
          fmt::format("{} does not return a tensor", name_);
    }
    return;
  }
  const at::Tensor output = results[0].toTensor();
  // A view of a parameter is not a use of it; what is done with the view is.
  if (parameter_of(output)) return;
  find_batch();
  for (Pending& use : pending_) {
    if (use.why_not.empty() && results.size() > 1) {
      use.why_not = fmt::format("{} has several outputs", name_);
    }
  }
  note_uses(output);
  if (merges_) {
    LayerUse& use = now_->uses[*merges_];
    use.bias = pending_[0].parameter;
    const auto call =
        std::const_pointer_cast<LayerCall>(std::static_pointer_cast<const LayerCall>(use.op));
    call->set_bias(pending_[0].argument, model_.parameters[use.bias].tensor);
    use.output = output.detach();
    now_->versions[*merges_] = {use.output, use.output._version()};
    now_->edges[*merges_] = edge_of(output);
    last_outputs_.insert_or_assign(output.unsafeGetTensorImpl(),
                                   Output{Output::Weak(output.getIntrusivePtr()), *merges_});
    return;
  }
  for (const Pending& pending : pending_) {
    const ParameterInfo& parameter = model_.parameters[pending.parameter];
    std::string why_not = pending.why_not;
    std::shared_ptr<LayerCall> call;
    if (why_not.empty()) {
      call = LayerCall::make(name_, arguments_, pending.position, parameter.tensor, &why_not);
    }
    if (call) {
      const at::Tensor operand = arguments_[call->operand()].toTensor();
      // Gains of reparametrised weights multiply what does not depend on the examples.
      if (parameter_of(operand) ||
          (call->kind() == LayerOperator::Kind::kScale && !flow_.carries(operand))) {
        why_not = fmt::format("{} combines it with something that is not made of examples", name_);
        call.reset();
      }
    }
    if (!call) {
      if (!why_not.empty()) unrecognised_[parameter.layer] = why_not;
      continue;
    }
    LayerUse use;
    use.layer = parameter.layer;
    use.weight = parameter.id;
    use.input = arguments_[call->operand()].toTensor().detach();
    use.output = output.detach();
    if (const auto position = call->bias_position(); position && *position < arguments_.size()) {
      for (const Pending& other : pending_) {
        const ParameterInfo& bias = model_.parameters[other.parameter];
        if (other.position != *position || bias.layer != parameter.layer) continue;
        call->set_bias(other.argument, bias.tensor);
        use.bias = other.parameter;
      }
    }
    // In-place multiplication: its input is what it writes to.
    if (shares_storage(use.input, use.output) && name_.back() == '_') {
      unrecognised_[parameter.layer] = fmt::format("{} overwrites its input", name_);
      continue;
    }
    use.op = call;
    now_->edges.push_back(edge_of(output));
    now_->versions.emplace_back(use.output, use.output._version());
    last_outputs_.insert_or_assign(
        output.unsafeGetTensorImpl(),
        Output{Output::Weak(output.getIntrusivePtr()), now_->uses.size()});
    now_->uses.push_back(std::move(use));
  }
}

// Positions: an embedding at indices that are the same for all examples is added to something of
// theirs; from there on its gradient shows the examples.

void ProbePass::before_positions(c10::ArrayRef<const c10::IValue> inputs) {
  added_.reset();
  if ((name_ != "aten::add" && name_ != "aten::add_") || inputs.size() < 3 || !is_one(inputs[2])) {
    return;
  }
  for (size_t i = 0; i < 2; ++i) {
    if (!inputs[i].isTensor() || !inputs[1 - i].isTensor()) continue;
    const at::Tensor tensor = inputs[i].toTensor();
    const auto found = positions_.find(tensor.unsafeGetTensorImpl());
    if (found == positions_.end() || found->second.tensor.expired() ||
        !flow_.carries(inputs[1 - i].toTensor())) {
      continue;
    }
    Added added{found->second.use, {name_, {}, i, tensor.detach()}};
    for (const c10::IValue& input : inputs) {
      added.sum.arguments.push_back(input.isTensor() ? c10::IValue(input.toTensor().detach())
                                                     : input);
    }
    added_ = std::move(added);
    return;
  }
}

void ProbePass::after_positions(const at::Tensor& output) {
  ParameterUse& use = now_->parameter_uses[added_->use];
  use.sum = std::move(added_->sum);
  use.edge = edge_of(output);
  added_.reset();
}

// Attention: the result of a softmax over the last dimension that a matrix product takes first.

void ProbePass::before_attention(c10::ArrayRef<const c10::IValue> inputs) {
  softmax_.reset();
  passed_on_.reset();
  const std::string_view name = name_;
  if (inputs.empty() || !inputs[0].isTensor() || !inputs[0].toTensor().defined()) return;
  const at::Tensor first = inputs[0].toTensor();
  if (name.back() == '_') {
    // What is overwritten is not what was seen.
    for (auto& each : softmaxes_) {
      if (each && (shares_storage(each->weights, first) || shares_storage(each->scores, first))) {
        each.reset();
      }
    }
    return;
  }
  if (name == "aten::softmax") {
    if (inputs.size() < 2 || !inputs[1].isInt() || first.dim() < 3) return;
    const int64_t dim = inputs[1].toInt();
    if (dim != -1 && dim != first.dim() - 1) return;
    for (auto use = now_->uses.rbegin(); use != now_->uses.rend(); ++use) {
      if (use->op->kind() != LayerOperator::Kind::kLinear) continue;
      softmax_ = Attention{first.detach(), {}, use->layer};
      return;
    }
    return;
  }
  const auto found = passes_on_.find(first.unsafeGetTensorImpl());
  if (found == passes_on_.end() || found->second.tensor.expired()) return;
  std::optional<Attention>& attention = softmaxes_[found->second.use];
  if (!attention) return;
  if (name == "aten::matmul" || name == "aten::bmm") {
    AttentionUse use;
    use.layer = attention->layer;
    const at::Tensor& p = attention->weights;
    use.queries = p.size(-1) == 0 ? 0 : p.numel() / p.size(-1);
    if (use.queries > 0) {
      use.entropy_sum = at::xlogy(p, p).sum(at::kDouble).neg();
      use.largest_logit = attention->scores.max().to(at::kDouble);
      now_->attention.push_back(std::move(use));
    }
    attention.reset();
    return;
  }
  if (name == "aten::dropout" || name == "aten::view" || name == "aten::reshape" ||
      name == "aten::expand" || name == "aten::contiguous" || name == "aten::to" ||
      name == "aten::type_as" || name == "aten::unsqueeze" || name == "aten::squeeze" ||
      name == "aten::flatten" || name == "aten::_unsafe_view") {
    passed_on_ = found->second.use;
  }
}

void ProbePass::after_attention(const std::vector<c10::IValue>& results) {
  if ((!softmax_ && !passed_on_) || results.empty() || !results[0].isTensor()) return;
  const at::Tensor output = results[0].toTensor();
  if (!output.defined()) return;
  if (softmax_) {
    softmax_->weights = output.detach();
    softmaxes_.push_back(std::move(softmax_));
    passed_on_ = softmaxes_.size() - 1;
  }
  passes_on_.insert_or_assign(output.unsafeGetTensorImpl(),
                              Output{Output::Weak(output.getIntrusivePtr()), *passed_on_});
}

/// The number of examples, and the data, from what operators with parameters meet first.
void ProbePass::find_batch() {
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (!arguments_[i].isTensor()) continue;
    const at::Tensor tensor = arguments_[i].toTensor();
    if (!tensor.defined() || !flow_.carries(tensor)) continue;
    if (now_->batch.size == 0 && (tensor.dim() > std::max<int64_t>(batch_dim_, 1) ||
                                  (tensor.dim() == 1 && batch_dim_ == 0))) {
      now_->batch.size = tensor.size(batch_dim_);
    }
    // Running statistics of BatchNorm change, and are no data.
    const bool statistics =
        (name_ == "aten::batch_norm" || name_ == "aten::instance_norm") && i > 2;
    if (!tainted(tensor) && !statistics) now_->data.push_back(fingerprint(tensor));
  }
}

/// Shape, and a weighted sum over a sample of the elements.
at::Tensor ProbePass::fingerprint(const at::Tensor& data) const {
  constexpr int64_t kSample = 1 << 12;
  std::vector<double> sizes;
  for (const int64_t size : data.sizes()) sizes.push_back(static_cast<double>(size));
  const at::Tensor shape = at::tensor(sizes, at::kDouble);
  if (data.numel() == 0 || data.is_complex()) return shape;
  const int64_t stride = (data.numel() + kSample - 1) / kSample;
  const at::Tensor sample =
      data.detach().reshape({-1}).slice(0, 0, c10::nullopt, stride).to(at::kDouble);
  const at::Tensor ramp = at::arange(1, sample.numel() + 1, sample.options()).mul_(0.7).sin_();
  return at::cat({shape, at::dot(sample, ramp).reshape({1}).to(at::kCPU)});
}

void ProbePass::note_uses(const at::Tensor& output) {
  if (!with_gradients_) return;
  for (const Pending& pending : pending_) {
    ParameterUse use;
    use.parameter = pending.parameter;
    use.why_not = pending.why_not;
    use.use = {name_, {}, pending.position, pending.argument.detach()};
    for (const c10::IValue& argument : arguments_) {
      use.use.arguments.push_back(argument.isTensor() && argument.toTensor().defined()
                                      ? c10::IValue(argument.toTensor().detach())
                                      : argument);
    }
    use.edge = edge_of(output);
    if (name_ == "aten::embedding" && pending.position == 0 && arguments_.size() > 1 &&
        arguments_[1].isTensor() && !flow_.carries(arguments_[1].toTensor())) {
      positions_.insert_or_assign(
          output.unsafeGetTensorImpl(),
          Output{Output::Weak(output.getIntrusivePtr()), now_->parameter_uses.size()});
    }
    now_->parameter_uses.push_back(std::move(use));
  }
}

}  // namespace tycho
