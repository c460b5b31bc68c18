#include "curvature/probe_loss_surface.h"

#include <ATen/record_function.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "curvature/foreign_nodes.h"
#include "curvature/output_loss.h"
#include "error_text.h"
#include "tensor_sums.h"

#ifndef NDEBUG
#error "record_function.h has another layout without NDEBUG than in a release LibTorch"
#endif

namespace tycho {
namespace {

constexpr double kSameCurvature = 1e-3;

}  // namespace

template <typename Action>
auto ProbeLossSurface::evaluate(const Action& action) -> decltype(action()) {
  const at::AutoGradMode with_gradients(true);
  const at::DisableRecordFunctionGuard unobserved;
  try {
    return action();
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

ProbeLossSurface::ProbeLossSurface(std::string name, const ProbeLoss& loss, SavedState& state,
                                   const std::vector<Parameter>& parameters, ProductMethod* method)
    : name_(std::move(name)), loss_(loss), state_(state), method_(method) {
  bool any_double = false;
  for (const Parameter& parameter : parameters) {
    if (!parameter.tensor.requires_grad()) continue;
    parameters_.push_back(parameter.tensor);
    blocks_.push_back({parameter.id, dimension_, parameter.tensor.numel()});
    dimension_ += parameter.tensor.numel();
    any_double = any_double || parameter.tensor.scalar_type() == at::kDouble;
  }
  options_ = at::TensorOptions().dtype(any_double ? at::kDouble : at::kFloat);
  if (!parameters_.empty()) options_ = options_.device(parameters_.front().device());
}

void ProbeLossSurface::begin() {
  if (parameters_.empty()) fail("no parameter is trained");
  state_.begin();
  if (graph_position_ != state_.position()) {
    forget_graph();
    graph_position_ = state_.position();
  }
}

void ProbeLossSurface::forget_graph() {
  graph_.clear();
  graph_value_.reset();
}

at::Tensor ProbeLossSurface::chunk_output(size_t chunk) {
  return loss_.output ? loss_.output(static_cast<int64_t>(chunk)) : at::Tensor();
}

at::Tensor ProbeLossSurface::chunk_loss(size_t chunk, const at::Tensor& output) {
  at::Tensor value = loss_.loss(output, static_cast<int64_t>(chunk));
  if (!value.defined() || value.numel() != 1) fail("it is not a scalar");
  return value.reshape({}) * loss_.weights[chunk];
}

at::Tensor ProbeLossSurface::value() {
  begin();
  // With gradients enabled, though none is asked for: the loss may take some itself.
  return evaluate([&] {
    at::Tensor sum;
    for (size_t chunk = 0; chunk < chunks(); ++chunk) {
      state_.rewind();
      const at::Tensor part = chunk_loss(chunk).detach().to(at::kDouble);
      sum = sum.defined() ? sum + part : part;
    }
    return sum;
  });
}

ProbeLossSurface::Tensors ProbeLossSurface::chunk_gradients(size_t chunk, bool create_graph) {
  state_.rewind();
  const at::Tensor value = chunk_loss(chunk);
  if (!value.requires_grad()) {
    fail("it is not differentiable: it depends on no parameter, or was detached");
  }
  if (create_graph && chunks() == 1) graph_value_ = value.item<double>();
  return torch::autograd::grad({value}, parameters_, {}, /*retain_graph=*/create_graph,
                               create_graph, /*allow_unused=*/true);
}

void ProbeLossSurface::check_gradients(const Tensors& gradients) const {
  if (std::none_of(gradients.begin(), gradients.end(),
                   [](const at::Tensor& gradient) { return gradient.defined(); })) {
    fail("it depends on no parameter");
  }
}

at::Tensor ProbeLossSurface::flatten(const Tensors& parts, size_t first, size_t count) const {
  Tensors flat;
  flat.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor& part = parts[i];
    flat.push_back(
        part.defined()
            ? (part.is_sparse() ? part.to_dense() : part).detach().reshape({-1}).to(options_)
            : at::zeros({blocks_[first + i].size}, options_));
  }
  return at::cat(flat);
}

ProbeLossSurface::Tensors ProbeLossSurface::split(const at::Tensor& vector, size_t first,
                                                  size_t count) const {
  Tensors parts;
  parts.reserve(count);
  int64_t begin = 0;
  for (size_t i = first; i < first + count; ++i) {
    parts.push_back(vector.narrow(0, begin, blocks_[i].size)
                        .reshape(parameters_[i].sizes())
                        .to(parameters_[i].options()));
    begin += blocks_[i].size;
  }
  return parts;
}

at::Tensor ProbeLossSurface::gradient(bool products_follow) {
  begin();
  return evaluate([&] {
    check_gradients_repeat();
    if (products_follow && graph_.empty() && chunks() == 1 &&
        method_->kind == ProductMethod::kDoubleBackward) {
      graph_ = chunk_gradients(0, true);
      check_gradients(graph_);
    }
    if (!graph_.empty()) return flatten(graph_, 0, graph_.size());
    at::Tensor sum;
    for (size_t chunk = 0; chunk < chunks(); ++chunk) {
      const Tensors gradients = chunk_gradients(chunk, false);
      check_gradients(gradients);
      const at::Tensor part = flatten(gradients, 0, gradients.size());
      sum = sum.defined() ? sum.add_(part) : part;
    }
    return sum;
  });
}

at::Tensor ProbeLossSurface::exact_product(const at::Tensor& vector, size_t first, size_t count) {
  at::Tensor sum;
  torch::autograd::edge_list wanted;
  for (size_t i = first; i < first + count; ++i) {
    wanted.push_back(torch::autograd::impl::gradient_edge(parameters_[i]));
  }
  const Tensors parts = split(vector, first, count);
  for (size_t chunk = 0; chunk < chunks(); ++chunk) {
    if (graph_.empty() || chunks() > 1) {
      graph_ = chunk_gradients(chunk, true);
      check_gradients(graph_);
    }
    torch::autograd::edge_list roots;
    Tensors seeds;
    for (size_t i = 0; i < count; ++i) {
      // What the loss is linear in has a gradient without a graph.
      const at::Tensor& gradient = graph_[first + i];
      if (!gradient.defined() || !gradient.requires_grad()) continue;
      roots.push_back(torch::autograd::impl::gradient_edge(gradient));
      seeds.push_back(parts[i]);
    }
    // The graph does not need the gradients' values.
    if (!keeps_graph()) graph_.clear();
    Tensors products(count);
    if (!roots.empty()) {
      products = torch::autograd::Engine::get_default_engine().execute(
          roots, seeds, /*keep_graph=*/keeps_graph(), /*create_graph=*/false,
          /*accumulate_grad=*/false, wanted);
    }
    const at::Tensor part = flatten(products, first, count);
    sum = sum.defined() ? sum.add_(part) : part;
  }
  return sum;
}

double ProbeLossSurface::parameter_norm() const {
  double square = 0;
  for (const at::Tensor& parameter : parameters_) {
    const double each = norm_of(parameter.detach());
    square += each * each;
  }
  return std::sqrt(square);
}

/// (g(theta + eps v) - g(theta - eps v)) / (2 eps): the truncation error falls with eps^2, the
/// rounding error grows with 1/eps.
at::Tensor ProbeLossSurface::difference_product(const at::Tensor& vector, size_t first,
                                                double scale) {
  const double length = norm_of(vector);
  if (!(length > 0)) return at::zeros_like(vector);
  const double size = std::max(parameter_norm(), 1e-3);
  const double epsilon = scale * (wide() ? 1e-5 : 1e-3) * size / length;
  at::Tensor whole = vector;
  if (vector.numel() != dimension_) {
    whole = at::zeros({dimension_}, options_);
    whole.narrow(0, blocks_[first].begin, vector.numel()).copy_(vector);
  }
  const at::Tensor origin = state_.displacement();
  const auto gradient_at = [&](double factor) {
    const at::Tensor shift = whole * factor;
    move(origin.defined() ? origin + shift : shift);
    return gradient();
  };
  at::Tensor difference = gradient_at(epsilon);
  difference.sub_(gradient_at(-epsilon));
  move(origin);
  if (vector.numel() != dimension_) {
    difference = difference.narrow(0, blocks_[first].begin, vector.numel());
  }
  return difference / (2 * epsilon);
}

bool ProbeLossSurface::is_foreign() {
  for (size_t chunk = 0; chunk < chunks(); ++chunk) {
    state_.rewind();
    if (has_foreign_nodes(chunk_loss(chunk))) return true;
  }
  return false;
}

void ProbeLossSurface::check_gradients_repeat() {
  if (method_->kind == ProductMethod::kNone) throw NoProducts(method_->reason);
  if (asked_) return;
  asked_ = true;
  proof_due_ = method_->surfaces++ % method_->proved_every == 0;
  if (!proof_due_) return;
  poison_free_memory(options_);
  const at::Tensor once = gradient();
  poison_free_memory(options_);
  const at::Tensor twice = gradient();
  if (!at::isfinite(once).all().item<bool>() && !at::isfinite(twice).all().item<bool>()) return;
  if (!is_repeated(once, twice, blocks_, wide())) {
    fail(
        "its gradient differs at a second evaluation: an operator is not deterministic, or "
        "reads uninitialised memory");
  }
}

void ProbeLossSurface::fall_back(const ProductTrial& trial, std::string reason) {
  forget_graph();
  const DifferenceQuality quality = assess_differences(trial);
  if (!quality.symmetric()) {
    reason = fmt::format(
        "its gradient is not that of a function (is there a straight-through estimator?): {}, and "
        "differences of gradients are not symmetric",
        reason);
  }
  *method_ = {quality.symmetric() ? ProductMethod::kFiniteDifferences : ProductMethod::kNone,
              std::move(reason),
              quality.error,
              quality.scale,
              method_->proved_every,
              method_->surfaces};
}

void ProbeLossSurface::prove() {
  ProductTrial trial;
  trial.blocks = &blocks_;
  trial.options = options_;
  trial.wide = wide();
  trial.foreign = is_foreign();
  trial.seed = static_cast<uint64_t>(method_->surfaces);
  trial.product = [this](const at::Tensor& v) {
    forget_graph();
    return exact_product(v, 0, blocks_.size());
  };
  trial.difference = [this](const at::Tensor& v, double scale) {
    return difference_product(v, 0, scale);
  };
  if (method_->kind == ProductMethod::kFiniteDifferences) {
    return fall_back(trial, method_->reason);
  }
  ProductVerdict verdict;
  try {
    verdict = prove_products(trial);
  } catch (const LossError&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    // A loss that fails by itself fails here again, and then it is the loss that is at fault.
    forget_graph();
    (void)gradient();
    return fall_back(trial, first_line(error));
  }
  forget_graph();
  if (verdict.kind == ProductVerdict::kRefuted) return fall_back(trial, verdict.why);
  method_->kind = ProductMethod::kDoubleBackward;
  method_->error = verdict.error;
}

at::Tensor ProbeLossSurface::product(const at::Tensor& vector, size_t first, size_t count) {
  begin();
  return evaluate([&] {
    check_gradients_repeat();
    if (proof_due_ || method_->kind == ProductMethod::kUndecided) {
      proof_due_ = false;
      prove();
    }
    if (method_->kind == ProductMethod::kNone) throw NoProducts(method_->reason);
    if (method_->kind == ProductMethod::kDoubleBackward) {
      return exact_product(vector, first, count);
    }
    return difference_product(vector, first, method_->scale);
  });
}

at::Tensor ProbeLossSurface::hessian_product(const at::Tensor& vector) {
  return product(vector, 0, blocks_.size());
}

at::Tensor ProbeLossSurface::block_product(size_t block, const at::Tensor& vector) {
  return product(vector, block, 1);
}

/// J v by differentiating u -> J' u, which is linear, in u.
at::Tensor ProbeLossSurface::gauss_newton_product(const at::Tensor& vector) {
  if (!has_output()) fail("the network's output was not given apart from the loss");
  begin();
  return evaluate([&] {
    check_gradients_repeat();
    forget_graph();
    at::Tensor sum;
    const Tensors parts = split(vector, 0, blocks_.size());
    for (size_t chunk = 0; chunk < chunks(); ++chunk) {
      state_.rewind();
      const at::Tensor output = chunk_output(chunk);
      if (!output.defined() || !output.requires_grad()) {
        fail("the output is not differentiable");
      }
      const at::Tensor seed = at::zeros_like(output).detach().requires_grad_(true);
      const Tensors back = torch::autograd::grad({output}, parameters_, {seed},
                                                 /*retain_graph=*/true, /*create_graph=*/true,
                                                 /*allow_unused=*/true);
      Tensors reached;
      Tensors directions;
      for (size_t i = 0; i < back.size(); ++i) {
        if (!back[i].defined() || !back[i].requires_grad()) continue;
        reached.push_back(back[i]);
        directions.push_back(parts[i]);
      }
      if (reached.empty()) fail("it depends on no parameter");
      const at::Tensor along =
          torch::autograd::grad(reached, {seed}, directions, /*retain_graph=*/true)[0].detach();
      const at::Tensor leaf = output.detach().requires_grad_(true);
      const at::Tensor slope = torch::autograd::grad({chunk_loss(chunk, leaf)}, {leaf}, {},
                                                     /*retain_graph=*/true,
                                                     /*create_graph=*/true)[0];
      at::Tensor bent = at::zeros_like(along);
      if (slope.requires_grad()) {
        bent = torch::autograd::grad({slope}, {leaf}, {along}, c10::nullopt,
                                     /*create_graph=*/false, /*allow_unused=*/true)[0];
        if (!bent.defined()) bent = at::zeros_like(along);
      }
      const Tensors products = torch::autograd::grad({output}, parameters_, {bent.detach()},
                                                     /*retain_graph=*/false,
                                                     /*create_graph=*/false, /*allow_unused=*/true);
      const at::Tensor part = flatten(products, 0, blocks_.size());
      sum = sum.defined() ? sum.add_(part) : part;
    }
    return sum;
  });
}

OutputLoss ProbeLossSurface::output_loss() {
  OutputLoss whole;
  whole.why_unknown = "the network's output was not given apart from the loss";
  if (!has_output()) return whole;
  begin();
  return evaluate([&] {
    for (size_t chunk = 0; chunk < chunks(); ++chunk) {
      state_.rewind();
      const at::Tensor output = chunk_output(chunk);
      if (!output.defined()) fail("the output is undefined");
      const OutputLoss part = identify_output_loss(
          output.detach(), [&](const at::Tensor& z) { return chunk_loss(chunk, z); });
      if (chunk == 0) {
        whole = part;
      } else if (part.kind != whole.kind ||
                 std::abs(part.curvature - whole.curvature) > kSameCurvature * whole.curvature) {
        whole.kind = OutputLoss::kUnknown;
        whole.why_unknown = "terms of different chunks have different weights";
      } else {
        whole.value += part.value;
        whole.terms += part.terms;
        whole.entropy += part.entropy;
      }
      if (whole.kind == OutputLoss::kUnknown) break;
    }
    whole.examples = loss_.examples;
    return whole;
  });
}

void ProbeLossSurface::move(const at::Tensor& displacement) {
  begin();
  state_.move(displacement);
}

void ProbeLossSurface::check_repeatable() {
  const double first = graph_value_ ? *graph_value_ : value().item<double>();
  const double second = value().item<double>();
  if (!std::isfinite(first) || !std::isfinite(second)) fail("it is not finite");
  // Kernels with and without gradients may round differently.
  const double allowed = (wide() ? 1e-9 : 1e-4) * (std::abs(first) + std::abs(second)) + 1e-12;
  if (std::abs(first - second) > allowed) {
    fail(fmt::format("it changes between two evaluations with the same random numbers: {} and {}",
                     first, second));
  }
}

}  // namespace tycho
