#include "features/kernel_pass.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "features/edge_gradients.h"
#include "features/tangent_gram.h"
#include "per_example/uses.h"

namespace tycho {
namespace {

// Of a run's kernels these are checked against gradients: the first ones, then now and then.
constexpr int64_t kKernelsAlwaysChecked = 2;
constexpr int64_t kKernelsCheckedEvery = 16;

/// float64; 0 where one of them is not there.
double product(const at::Tensor& left, const at::Tensor& right) {
  if (!left.defined() || !right.defined()) return 0;
  return (left.detach().to(at::kDouble) * right.detach().to(at::kDouble)).sum().item<double>();
}

}  // namespace

/// `along`: [n], the outputs of the examples along their directions.
KernelPass::ByParameter KernelPass::from_products(const at::Tensor& along, int64_t n) {
  std::vector<torch::autograd::Edge> edges;
  for (const KernelUse& use : uses_) edges.push_back(use.edge);
  const at::Tensor root = along.sum();
  const std::vector<at::Tensor> d = edge_gradients(root, at::ones_like(root), edges);
  const at::NoGradGuard no_grad;
  std::vector<std::vector<GramUse>> uses(model_.parameters.size());
  for (size_t i = 0; i < d.size(); ++i) {
    if (!d[i].defined()) continue;
    const KernelUse& use = uses_[i];
    if (!use.why_not.empty()) why_not_[use.parameter] = use.why_not;
    uses[use.parameter].push_back({&use.use, d[i].detach(), use.sum ? &*use.sum : nullptr});
  }
  ByParameter kernels(model_.parameters.size());
  for (const ParameterInfo& parameter : model_.parameters) {
    std::string& why = why_not_[parameter.id];
    if (!parameter.tensor.requires_grad() || uses[parameter.id].empty() || !why.empty()) continue;
    if (memory_->disproved[parameter.id]) {
      why = "products are not its gradients";
      continue;
    }
    kernels[parameter.id] =
        tangent_gram(uses[parameter.id], parameter.tensor.detach(), batch_, n, &why);
  }
  return kernels;
}

/// Entries of a few examples against inner products of their gradients: examples may act on each
/// other (batch normalisation), or lie otherwise than they seem to, and not every use may be seen.
void KernelPass::check(const at::Tensor& along, int64_t n, const ByParameter& kernels) {
  const std::vector<uint32_t> trained = trained_parameters(model_);
  const std::vector<int64_t> examples = {memory_->kernels % n, (memory_->kernels * 7 + n / 2) % n};
  const auto first = parameter_gradients(along[examples[0]], model_, trained);
  const auto second = parameter_gradients(along[examples[1]], model_, trained);
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < trained.size(); ++i) {
    const at::Tensor& kernel = kernels[trained[i]];
    const double own = product(first[i], first[i]);
    const double other = product(second[i], second[i]);
    const double cross = product(first[i], second[i]);
    if (!kernel.defined()) {
      // Not seen to be used, though the output depends on it.
      if (own > 0 || other > 0) memory_->disproved[trained[i]] = true;
      continue;
    }
    const auto entry = [&](size_t row, size_t column) {
      return kernel[examples[row]][examples[column]].item<double>();
    };
    const double scale = own + other + entry(0, 0) + entry(1, 1);
    if (!std::isfinite(scale)) continue;
    const double error = std::max({std::abs(entry(0, 0) - own), std::abs(entry(1, 1) - other),
                                   std::abs(entry(0, 1) - cross)});
    const bool wide = model_.parameters[trained[i]].tensor.scalar_type() == at::kDouble;
    if (error > (wide ? 1e-9 : 1e-3) * scale + 1e-30) memory_->disproved[trained[i]] = true;
  }
}

/// One backward pass for each example.
void KernelPass::add_from_gradients(const at::Tensor& along, int64_t n,
                                    const std::vector<uint32_t>& of, ByParameter* kernels) {
  std::vector<uint32_t> fitting;
  int64_t elements = 0;
  for (const uint32_t id : of) {
    const int64_t more = n * model_.parameters[id].tensor.numel();
    if (elements + more > per_example::kMaxMaterialisedElements) {
      why_not_[id] +=
          fmt::format("; the gradients of {} examples would need {} MiB", n, more * 4 >> 20);
      continue;
    }
    elements += more;
    fitting.push_back(id);
  }
  if (fitting.empty()) return;
  std::vector<std::vector<at::Tensor>> rows(fitting.size());
  for (int64_t i = 0; i < n; ++i) {
    const auto gradients = parameter_gradients(along[i], model_, fitting);
    const at::NoGradGuard no_grad;
    for (size_t k = 0; k < fitting.size(); ++k) {
      rows[k].push_back(gradients[k].defined()
                            ? gradients[k].detach().reshape({-1})
                            : at::zeros_like(model_.parameters[fitting[k]].tensor).reshape({-1}));
    }
  }
  const at::NoGradGuard no_grad;
  for (size_t k = 0; k < fitting.size(); ++k) {
    (*kernels)[fitting[k]] = row_gram(at::stack(rows[k]));
    why_not_[fitting[k]].clear();
  }
}

/// Kernels of layers, and of all: of parameters that have one, where none lacks it.
void KernelPass::sum_up(const ByParameter& kernels, TangentKernel* result) const {
  result->layers.resize(model_.layers.size());
  result->why_not.resize(model_.layers.size());
  bool complete = true;
  for (const ParameterInfo& parameter : model_.parameters) {
    if (!why_not_[parameter.id].empty()) {
      complete = false;
      std::string& why = result->why_not[parameter.layer];
      if (why.empty()) why = parameter.name + ": " + why_not_[parameter.id];
    }
    const at::Tensor& kernel = kernels[parameter.id];
    if (!kernel.defined()) continue;
    at::Tensor& sum = result->layers[parameter.layer];
    sum = sum.defined() ? sum + kernel.to(sum.device()) : kernel;
  }
  at::Tensor whole;
  for (const LayerInfo& layer : model_.layers) {
    at::Tensor& kernel = result->layers[layer.id];
    if (!result->why_not[layer.id].empty()) kernel = at::Tensor();
    if (!kernel.defined()) continue;
    whole = whole.defined() ? whole + kernel.to(whole.device()) : kernel;
  }
  if (complete) result->whole = whole;
}

TangentKernel KernelPass::measure(const at::Tensor& rows, int64_t limit, at::Generator generator) {
  TangentKernel result;
  const int64_t n = result.examples = std::min(limit, batch_.size);
  const at::Tensor outputs = rows.slice(0, 0, n);
  at::Tensor directions = at::ones({n, outputs.size(1)}, at::kDouble);
  if (outputs.size(1) > 1) {
    directions =
        at::randn({n, outputs.size(1)}, std::move(generator), at::TensorOptions(at::kDouble));
    directions = directions / directions.norm(2, {1}, true);
  }
  result.directions = directions.to(outputs.options().requires_grad(false));
  const at::Tensor along = (outputs * result.directions).sum(1);
  const size_t parameters = model_.parameters.size();
  memory_->disproved.resize(parameters, false);
  why_not_.assign(parameters, "");
  ByParameter kernels = from_products(along, n);
  if (n > 0 &&
      (memory_->kernels < kKernelsAlwaysChecked || memory_->kernels % kKernelsCheckedEvery == 0)) {
    check(along, n, kernels);
  }
  ++memory_->kernels;
  std::vector<uint32_t> without;
  for (const uint32_t id : trained_parameters(model_)) {
    std::string& why = why_not_[id];
    if (memory_->disproved[id]) why = "products are not its gradients";
    if (!why.empty()) without.push_back(id);
  }
  result.products = without.empty();
  add_from_gradients(along, n, without, &kernels);
  sum_up(kernels, &result);
  return result;
}

}  // namespace tycho
