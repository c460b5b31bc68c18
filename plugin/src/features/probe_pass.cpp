#include "features/probe_pass.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <exception>
#include <utility>

#include "error_text.h"
#include "features/edge_gradients.h"
#include "features/kernel_pass.h"
#include "features/output_line.h"
#include "features/parabola.h"

#ifndef NDEBUG
#error "record_function.h has another layout without NDEBUG than in a release LibTorch"
#endif

namespace tycho {

using torch::autograd::Edge;

void ProbePass::Chunk::drop_graph() {
  for (Edge& edge : calls.edges) edge = Edge();
  for (KernelUse& use : calls.kernel_uses) use.edge = Edge();
  output = output.defined() ? output.detach() : output;
  loss = loss.defined() ? loss.detach() : loss;
}

ProbePass::ProbePass(const ProbeLoss& loss, SavedState& state, const ModelInfo& model,
                     const std::vector<ProbeLossSurface::Parameter>& parameters, int64_t batch_dim,
                     const Needs& needs, ProbePassMemory* memory)
    : loss_(loss),
      state_(state),
      model_(model),
      with_gradients_(needs.probe_feature_gradients),
      with_attention_(needs.probe_attention),
      memory_(memory),
      recorder_(model, batch_dim, needs.probe_feature_gradients) {
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
  evaluate([&] {
    // Whether or not gradients are asked for here: the loss may take some itself.
    const at::AutoGradMode with_gradients(true);
    state_.rewind(memory_->generators);
    recorder_.begin(with_attention_ && !ran_all_);
    const ExclusiveOperatorWatch watch(&recorder_);
    if (loss_.output) result.output = loss_.output(chunk);
    result.loss = loss_.loss(result.output, chunk);
  });
  result.calls = recorder_.end();
  if (!recorder_.failure().empty()) fail(recorder_.failure());
  if (loss_.output && !result.output.defined()) fail("its output is not a tensor");
  for (LayerUse& use : result.calls.uses) use.chunk = chunk;
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
    const Chunk& now = chunks_.back();
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
    for (LayerUse& use : chunk.calls.uses) {
      used[use.layer] = true;
      uses_.push_back(std::move(use));
    }
    chunk.calls.uses.clear();
    for (AttentionUse& use : chunk.calls.attention) attention_.push_back(std::move(use));
    chunk.calls.attention.clear();
    data.insert(data.end(), chunk.calls.data.begin(), chunk.calls.data.end());
    chunk.calls.data.clear();
  }
  for (const LayerInfo& layer : model_.layers) {
    if (used[layer.id]) continue;
    const std::string& why = recorder_.why_not(layer.id);
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
  return chunks_[static_cast<size_t>(chunk)].calls.batch.size;
}

at::Tensor ProbePass::by_example(const LayerUse& use, const at::Tensor& output) {
  run();
  const per_example::Batch& batch = chunks_[static_cast<size_t>(use.chunk)].calls.batch;
  if (use.op->kind() == LayerOperator::Kind::kConvolution &&
      (batch.dim != 0 || output.dim() < 3 || output.size(0) != batch.size)) {
    return {};
  }
  const at::Tensor rows = per_example::by_example(output, 1, batch);
  return rows.defined() ? rows.reshape({batch.size, -1}) : rows;
}

at::Tensor ProbePass::output_rows(const Chunk& chunk, const at::Tensor& output) const {
  if (!output.is_floating_point() || output.dim() == 0) return {};
  const at::Tensor rows =
      per_example::by_example(output, output.dim() > 1 ? 1 : 0, chunk.calls.batch);
  return rows.defined() ? rows.reshape({chunk.calls.batch.size, -1}) : rows;
}

at::Tensor ProbePass::targets(int64_t chunk) {
  if (!has_output()) return {};
  run();
  const at::Tensor& output = outputs_[static_cast<size_t>(chunk)];
  if (!output.is_floating_point() || output.numel() == 0) return {};
  at::Tensor result;
  evaluate([&] {
    const at::Tensor target = parabola_vertex(output, [&](const at::Tensor& at) {
      const at::AutoGradMode with_gradients(true);
      const at::Tensor leaf = at.detach().clone().requires_grad_(true);
      state_.rewind(memory_->generators);
      const at::Tensor value = loss_.loss(leaf, chunk);
      if (!value.defined() || value.numel() != 1 || !value.requires_grad()) return at::Tensor();
      const at::Tensor found =
          torch::autograd::grad({value}, {leaf}, {}, c10::nullopt, /*create_graph=*/false,
                                /*allow_unused=*/true)[0];
      return found.defined() ? found.detach() : found;
    });
    const at::NoGradGuard no_grad;
    if (target.defined()) result = output_rows(chunks_[static_cast<size_t>(chunk)], target);
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
  if (again.calls.edges.size() != first.calls.edges.size() ||
      again.calls.kernel_uses.size() != first.calls.kernel_uses.size()) {
    fail("it runs other operators when it is evaluated again");
  }
  first.calls.edges = std::move(again.calls.edges);
  first.calls.kernel_uses = std::move(again.calls.kernel_uses);
  first.output = again.output;
  first.loss = again.loss;
  held_ = chunk;
}

std::vector<at::Tensor> ProbePass::gradients(int64_t chunk, const at::Tensor& seed) {
  hold(chunk);
  const Chunk& now = chunks_[static_cast<size_t>(chunk)];
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
    const std::vector<at::Tensor> found = edge_gradients(root, weights, now.calls.edges);
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
  const std::vector<uint32_t> trained = trained_parameters(model_);
  for (int64_t i = 0; i < chunks(); ++i) {
    // The one that is held first.
    const int64_t chunk = (held_ + i) % chunks();
    hold(chunk);
    const Chunk& now = chunks_[static_cast<size_t>(chunk)];
    evaluate([&] {
      const at::AutoGradMode with_gradients(true);
      if (!now.loss.defined() || now.loss.numel() != 1) fail("it is not a scalar");
      if (!now.loss.requires_grad()) fail("it depends on no parameter, or was detached");
      const std::vector<at::Tensor> found = parameter_gradients(now.loss, model_, trained);
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

FeaturePass::Line ProbePass::line(int64_t chunk, const std::vector<at::Tensor>& from) {
  if (!no_gradients_.empty()) throw NoProducts(no_gradients_);
  if (!has_output()) fail("the network's output was not given apart from the loss");
  begin();
  Line result;
  try {
    evaluate([&] {
      result = output_line(parameters_, from, [&](const std::vector<at::Tensor>& values) {
        state_.visit(values);
        const at::AutoGradMode with_gradients(true);
        state_.rewind(memory_->generators);
        return loss_.output(chunk);
      });
    });
  } catch (...) {
    state_.move({});
    throw;
  }
  state_.move({});
  return result;
}

TangentKernel ProbePass::tangent_kernel(int64_t limit, at::Generator generator) {
  TangentKernel result;
  if (!has_output()) {
    result.impossible = "it needs the network's output apart from the loss (ProbeLoss::output)";
    return result;
  }
  hold(0);
  const Chunk& now = chunks_[0];
  if (!now.output.requires_grad()) {
    result.impossible = "the output depends on no parameter, or was detached";
    return result;
  }
  evaluate([&] {
    const at::AutoGradMode with_gradients(true);
    const at::Tensor rows = output_rows(now, now.output);
    if (!rows.defined()) {
      result.impossible = "the output does not show which of it belongs to which example";
      return;
    }
    KernelPass kernel(model_, now.calls.kernel_uses, now.calls.batch, memory_);
    result = kernel.measure(rows, limit, std::move(generator));
  });
  return result;
}

}  // namespace tycho
