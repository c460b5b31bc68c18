// Tangent kernels of a probe pass.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "features/probe_pass.h"
#include "features/tangent_gram.h"
#include "per_example/uses.h"
#include "tensor_sums.h"

namespace tycho {
namespace {

// Of a run's kernels these are checked against gradients: the first ones, then now and then.
constexpr int64_t kKernelsAlwaysChecked = 2;
constexpr int64_t kKernelsCheckedEvery = 16;

}  // namespace

std::vector<at::Tensor> ProbePass::parameter_gradients(const at::Tensor& root,
                                                       const std::vector<uint32_t>& of) {
  std::vector<torch::autograd::Edge> edges;
  for (const uint32_t id : of) {
    edges.push_back(torch::autograd::impl::gradient_edge(model_.parameters[id].tensor));
  }
  std::vector<at::Tensor> found = backward(root, at::ones_like(root), edges);
  for (at::Tensor& gradient : found) {
    if (gradient.defined() && gradient.is_sparse()) gradient = gradient.to_dense();
  }
  return found;
}

/// `along`: [n], the outputs of the examples along their directions.
ProbePass::ByParameter ProbePass::kernel_products(const at::Tensor& along, int64_t n,
                                                  std::vector<std::string>* why_not) {
  const Chunk& now = chunks_[0];
  std::vector<torch::autograd::Edge> edges;
  for (const ParameterUse& use : now.parameter_uses) edges.push_back(use.edge);
  const at::Tensor root = along.sum();
  const std::vector<at::Tensor> d = backward(root, at::ones_like(root), edges);
  const at::NoGradGuard no_grad;
  std::vector<std::vector<GramUse>> uses(model_.parameters.size());
  for (size_t i = 0; i < d.size(); ++i) {
    if (!d[i].defined()) continue;
    const ParameterUse& use = now.parameter_uses[i];
    if (!use.why_not.empty()) (*why_not)[use.parameter] = use.why_not;
    uses[use.parameter].push_back({&use.use, d[i].detach(), use.sum ? &*use.sum : nullptr});
  }
  ByParameter kernels(model_.parameters.size());
  for (const ParameterInfo& parameter : model_.parameters) {
    std::string& why = (*why_not)[parameter.id];
    if (!parameter.tensor.requires_grad() || uses[parameter.id].empty() || !why.empty()) continue;
    if (memory_->disproved[parameter.id]) {
      why = "products are not its gradients";
      continue;
    }
    kernels[parameter.id] =
        tangent_gram(uses[parameter.id], parameter.tensor.detach(), now.batch, n, &why);
  }
  return kernels;
}

/// Entries of a few examples against inner products of their gradients: examples may act on each
/// other (batch normalisation), or lie otherwise than they seem to, and not every use may be seen.
void ProbePass::check_products(const at::Tensor& along, int64_t n, const ByParameter& kernels) {
  std::vector<uint32_t> trained;
  for (const ParameterInfo& parameter : model_.parameters) {
    if (parameter.tensor.requires_grad()) trained.push_back(parameter.id);
  }
  const std::vector<int64_t> examples = {memory_->kernels % n, (memory_->kernels * 7 + n / 2) % n};
  const auto first = parameter_gradients(along[examples[0]], trained);
  const auto second = parameter_gradients(along[examples[1]], trained);
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < trained.size(); ++i) {
    const at::Tensor& kernel = kernels[trained[i]];
    const auto product = [](const at::Tensor& left, const at::Tensor& right) {
      if (!left.defined() || !right.defined()) return 0.0;
      return (left.detach().to(at::kDouble) * right.detach().to(at::kDouble)).sum().item<double>();
    };
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
void ProbePass::kernel_gradients(const at::Tensor& along, int64_t n,
                                 const std::vector<uint32_t>& of, ByParameter* kernels,
                                 std::vector<std::string>* why_not) {
  std::vector<uint32_t> fitting;
  int64_t elements = 0;
  for (const uint32_t id : of) {
    const int64_t more = n * model_.parameters[id].tensor.numel();
    if (elements + more > per_example::kMaxMaterialisedElements) {
      (*why_not)[id] +=
          fmt::format("; the gradients of {} examples would need {} MiB", n, more * 4 >> 20);
      continue;
    }
    elements += more;
    fitting.push_back(id);
  }
  if (fitting.empty()) return;
  std::vector<std::vector<at::Tensor>> rows(fitting.size());
  for (int64_t i = 0; i < n; ++i) {
    const auto gradients = parameter_gradients(along[i], fitting);
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
    (*why_not)[fitting[k]].clear();
  }
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
    const int64_t n = result.examples = std::min(limit, now.batch.size);
    const at::Tensor outputs = rows.slice(0, 0, n);
    at::Tensor directions = at::ones({n, outputs.size(1)}, at::kDouble);
    if (outputs.size(1) > 1) {
      directions = at::randn({n, outputs.size(1)}, generator, at::TensorOptions(at::kDouble));
      directions = directions / directions.norm(2, {1}, true);
    }
    result.directions = directions.to(outputs.options().requires_grad(false));
    const at::Tensor along = (outputs * result.directions).sum(1);
    const size_t parameters = model_.parameters.size();
    memory_->disproved.resize(parameters, false);
    std::vector<std::string> why_not(parameters);
    ByParameter kernels = kernel_products(along, n, &why_not);
    if (n > 0 && (memory_->kernels < kKernelsAlwaysChecked ||
                  memory_->kernels % kKernelsCheckedEvery == 0)) {
      check_products(along, n, kernels);
    }
    ++memory_->kernels;
    std::vector<uint32_t> without;
    for (const ParameterInfo& parameter : model_.parameters) {
      if (!parameter.tensor.requires_grad()) continue;
      std::string& why = why_not[parameter.id];
      if (memory_->disproved[parameter.id]) why = "products are not its gradients";
      if (!why.empty()) without.push_back(parameter.id);
    }
    result.products = without.empty();
    kernel_gradients(along, n, without, &kernels, &why_not);
    result.layers.resize(model_.layers.size());
    result.why_not.resize(model_.layers.size());
    bool complete = true;
    for (const ParameterInfo& parameter : model_.parameters) {
      if (!why_not[parameter.id].empty()) {
        complete = false;
        std::string& why = result.why_not[parameter.layer];
        if (why.empty()) why = parameter.name + ": " + why_not[parameter.id];
      }
      const at::Tensor& kernel = kernels[parameter.id];
      if (!kernel.defined()) continue;
      at::Tensor& sum = result.layers[parameter.layer];
      sum = sum.defined() ? sum + kernel.to(sum.device()) : kernel;
    }
    at::Tensor whole;
    for (const LayerInfo& layer : model_.layers) {
      at::Tensor& kernel = result.layers[layer.id];
      if (!result.why_not[layer.id].empty()) kernel = at::Tensor();
      if (!kernel.defined()) continue;
      whole = whole.defined() ? whole + kernel.to(whole.device()) : kernel;
    }
    if (complete) result.whole = whole;
  });
  return result;
}

}  // namespace tycho
