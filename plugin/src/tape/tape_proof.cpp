#include "tape/tape_proof.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "tensor_sums.h"

namespace tycho::tape {
namespace {

double rounding_of(at::ScalarType type) {
  if (type == at::kDouble) return 1e-11;
  return type == at::kFloat ? 1e-5 : 2e-2;
}

std::string value_differs(double found, double expected, double rounding) {
  const bool same = std::abs(found - expected) <= rounding * std::abs(expected) ||
                    (std::isnan(found) && std::isnan(expected));
  if (same) return "";
  return fmt::format("evaluated again it is {:.9g}, not {:.9g}", found, expected);
}

}  // namespace

std::string disproof_of_value(const LossTape& tape, double expected) {
  const at::Tensor loss = tape.loss();
  return value_differs(loss.item<double>(), expected, rounding_of(loss.scalar_type()));
}

std::string disproof(const LossTape& tape, const std::vector<at::Tensor>& parameters,
                     const Expected& expected) {
  const at::Tensor loss = tape.loss();
  if (loss.numel() != 1) return "it is not a scalar";
  if (!loss.requires_grad()) return "evaluated again it has no gradient";
  const double rounding = rounding_of(loss.scalar_type());
  std::string differs = value_differs(loss.item<double>(), expected.loss, rounding);
  if (!differs.empty()) return differs;
  std::vector<at::Tensor> trained;
  std::vector<at::Tensor> theirs;
  double square = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].requires_grad()) continue;
    trained.push_back(parameters[i]);
    theirs.push_back(expected.gradients[i]);
    if (!theirs.back().defined()) continue;
    const double norm = norm_of(theirs.back());
    square += norm * norm;
  }
  const auto ours = torch::autograd::grad({loss}, trained, {}, /*retain_graph=*/false,
                                          /*create_graph=*/false, /*allow_unused=*/true);
  const double all = std::sqrt(square);
  bool any = false;
  double scale = 0;  // theirs over ours, where both are there
  for (size_t i = 0; i < trained.size(); ++i) {
    if (!theirs[i].defined()) continue;
    any = true;
    const at::Tensor own = ours[i].defined() ? ours[i] : at::zeros_like(trained[i]);
    const at::Tensor dense = (own.is_sparse() ? own.to_dense() : own).to(theirs[i].scalar_type());
    const double norm = norm_of(theirs[i]);
    const double allowed =
        std::max(rounding, rounding_of(trained[i].scalar_type())) * (norm + all / 10);
    const double apart = norm_of(dense - theirs[i]);
    if (apart <= allowed) continue;
    if (!std::isfinite(all)) return "the step's gradients are not finite";
    const double length = norm_of(dense);
    if (length > 0) scale = norm / length;
    return fmt::format(
        "its gradients are not those that backward delivered (relative difference {:.1e}, lengths "
        "{:.4g} to 1): several backward passes, another loss, or a scaled one",
        apart / (norm + all / 10), scale);
  }
  return any ? "" : "no gradient of the step was observed to compare with";
}

}  // namespace tycho::tape
