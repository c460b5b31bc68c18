#include "features/output_line.h"

#include <ATen/ATen.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <stdexcept>

namespace tycho {
namespace {

/// J v by differentiating u -> J' u, which is linear, in u. Throws where an operator cannot be
/// differentiated twice.
at::Tensor derivative_along(const at::Tensor& output, const std::vector<at::Tensor>& parameters,
                            const std::vector<at::Tensor>& way) {
  const at::Tensor seed = at::zeros_like(output).detach().requires_grad_(true);
  const auto parts = torch::autograd::grad({output}, parameters, {seed}, /*retain_graph=*/true,
                                           /*create_graph=*/true, /*allow_unused=*/true);
  torch::autograd::variable_list reached;
  torch::autograd::variable_list along;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].defined() || !parts[i].requires_grad()) continue;
    reached.push_back(parts[i]);
    along.push_back(way[i]);
  }
  if (reached.empty()) return at::zeros_like(output).detach().reshape({-1});
  return torch::autograd::grad(reached, {seed}, along)[0].detach().reshape({-1});
}

}  // namespace

FeaturePass::Line output_line(
    const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& from,
    const std::function<at::Tensor(const std::vector<at::Tensor>&)>& output_at) {
  std::vector<at::Tensor> way;
  double length = 0;
  double size = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    way.push_back(parameters[i].detach() - from[i]);
    length = std::hypot(length, way[i].norm().item<double>());
    size = std::hypot(size, from[i].norm().item<double>());
  }
  FeaturePass::Line result;
  {
    const at::AutoGradMode with_gradients(true);
    const at::Tensor output = output_at(from);
    result.output = output.detach().reshape({-1});
    if (!output.requires_grad()) {
      throw std::runtime_error("the output depends on no parameter, or was detached");
    }
    try {
      result.derivative = derivative_along(output, parameters, way);
      return result;
    } catch (const std::exception&) {
      result.exact = false;
    }
  }
  const at::NoGradGuard no_grad;
  const bool wide = result.output.scalar_type() == at::kDouble;
  const double step = length > 0 ? (wide ? 1e-5 : 1e-2) * std::max(size, 1e-3) / length : 1;
  const auto output_along = [&](double factor) {
    std::vector<at::Tensor> values;
    for (size_t i = 0; i < from.size(); ++i) values.push_back(at::add(from[i], way[i], factor));
    return output_at(values).detach().clone();
  };
  const at::Tensor above = output_along(step);
  result.derivative = ((above - output_along(-step)) / (2 * step)).reshape({-1});
  return result;
}

}  // namespace tycho
