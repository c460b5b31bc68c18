#include "curvature/output_loss.h"

#include <torch/torch.h>

#include <cmath>
#include <vector>

namespace tycho {
namespace {

struct Point {
  at::Tensor output;    // float64
  at::Tensor gradient;  // float64
  double value = 0;
};

Point evaluate_at(const at::Tensor& output,
                  const std::function<at::Tensor(const at::Tensor&)>& loss) {
  const at::Tensor leaf = output.detach().clone().requires_grad_(true);
  const at::Tensor value = loss(leaf);
  Point point;
  point.output = leaf.detach().to(at::kDouble);
  point.value = value.item<double>();
  point.gradient = at::zeros_like(point.output);
  if (value.requires_grad()) {
    const at::Tensor gradient =
        torch::autograd::grad({value}, {leaf}, {}, c10::nullopt, false, /*allow_unused=*/true)[0];
    if (gradient.defined()) point.gradient = gradient.detach().to(at::kDouble);
  }
  return point;
}

double largest(const at::Tensor& tensor) {
  return tensor.numel() == 0 ? 0 : tensor.abs().max().item<double>();
}

bool is_squared_error(const Point& here, const Point& near, double tolerance, OutputLoss* found) {
  const at::Tensor moved = near.output - here.output;
  const at::Tensor bent = near.gradient - here.gradient;
  const double curvature =
      (moved * bent).sum().item<double>() / moved.square().sum().item<double>();
  if (!(curvature > 0)) return false;
  // Differences of gradients round with the size of the gradients.
  const double size = curvature * largest(moved) + largest(here.gradient);
  if (!(largest(bent - curvature * moved) <= tolerance * size)) return false;
  const double value = here.gradient.square().sum().item<double>() / (2 * curvature);
  if (!(std::abs(here.value - value) <= tolerance * std::abs(here.value))) return false;
  found->kind = OutputLoss::kSquaredError;
  found->value = here.value;
  found->curvature = curvature;
  found->terms = here.output.numel();
  return true;
}

bool is_cross_entropy(const Point& here, int64_t classes_at, double tolerance, double epsilon,
                      OutputLoss* found) {
  const int64_t classes = here.output.size(classes_at);
  if (classes < 2) return false;
  const at::Tensor z = here.output.movedim(classes_at, -1).reshape({-1, classes});
  const at::Tensor g = here.gradient.movedim(classes_at, -1).reshape({-1, classes});
  const at::Tensor counted = at::nonzero(g.abs().sum(1) > 0).reshape({-1});
  if (counted.numel() == 0) return false;
  const at::Tensor logarithm = at::log_softmax(z.index_select(0, counted), 1);
  const at::Tensor p = logarithm.exp();
  const at::Tensor gradient = g.index_select(0, counted);
  const at::Tensor others = (gradient > 0).to(at::kDouble);
  const double curvature =
      (gradient * p * others).sum().item<double>() / (p.square() * others).sum().item<double>();
  if (!(curvature > 0)) return false;
  // Gradients that are exactly 0 do not tell the target; that its probability is missing does.
  const at::Tensor target = std::get<1>((gradient - curvature * p).min(1)).unsqueeze(1);
  const at::Tensor one_hot = at::zeros_like(p).scatter_(1, target, 1.0);
  if (!(largest(p - gradient / curvature - one_hot) <= tolerance)) return false;
  const double value = -curvature * logarithm.gather(1, target).sum().item<double>();
  // Where it is nearly 0 the loss is a difference of logits, and rounds as they do.
  const double rounding =
      8 * epsilon * curvature * static_cast<double>(counted.numel()) * (1 + largest(here.output));
  if (!(std::abs(here.value - value) <= tolerance * std::abs(here.value) + rounding)) return false;
  found->kind = OutputLoss::kCrossEntropy;
  found->value = here.value;
  found->curvature = curvature;
  found->terms = counted.numel();
  found->classes = classes;
  found->entropy = -curvature * (p * logarithm).sum().item<double>();
  return true;
}

}  // namespace

OutputLoss identify_output_loss(const at::Tensor& output,
                                const std::function<at::Tensor(const at::Tensor&)>& loss) {
  OutputLoss found;
  if (!output.is_floating_point() || output.numel() == 0) {
    found.why_unknown = "the network's output is empty, or not a floating-point tensor";
    return found;
  }
  const double tolerance = output.scalar_type() == at::kDouble  ? 1e-6
                           : output.scalar_type() == at::kFloat ? 1e-3
                                                                : 3e-2;
  const double epsilon = output.scalar_type() == at::kDouble  ? 1.1e-16
                         : output.scalar_type() == at::kFloat ? 6e-8
                                                              : 4e-3;
  const Point here = evaluate_at(output, loss);
  if (output.dim() >= 2) {
    if (is_cross_entropy(here, 1, tolerance, epsilon, &found)) return found;
    if (output.dim() > 2 && is_cross_entropy(here, output.dim() - 1, tolerance, epsilon, &found)) {
      return found;
    }
  }
  at::Generator generator = at::detail::createCPUGenerator(1);
  const double size = std::sqrt(here.output.square().mean().item<double>()) + 1e-3;
  const at::Tensor signs =
      at::randint(0, 2, output.sizes(), generator, at::TensorOptions().dtype(at::kDouble)) * 2 - 1;
  const at::Tensor moved = output.detach() + (0.1 * size * signs).to(output.options());
  if (is_squared_error(here, evaluate_at(moved, loss), tolerance, &found)) return found;
  found.why_unknown =
      "the loss is neither a plain squared error nor a plain cross-entropy of the network's output";
  return found;
}

}  // namespace tycho
