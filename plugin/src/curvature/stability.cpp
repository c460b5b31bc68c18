#include "curvature/stability.h"

#include <fmt/format.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <unordered_map>

#include "torch_compat.h"

namespace tycho {
namespace optim = torch::optim;
namespace {

constexpr double kFixed = std::numeric_limits<double>::infinity();  // P of what does not move

/// eta lambda_max(P^-1 (H + D)) at the edge: where a period of two steps neither grows nor shrinks.
double edge_of(const std::string& optimizer, const v1::ParameterGroup& group) {
  const double b = group.momentum();
  if (optimizer == "SGD") return group.nesterov() ? (2 + 2 * b) / (1 + 2 * b) : 2 + 2 * b;
  if (optimizer == "RMSprop") return 2 + 2 * b;
  if (optimizer == "Adagrad") return 2;
  const double decay = optimizer == "AdamW" ? group.learning_rate() * group.weight_decay() : 0;
  return (2 - decay) * (1 + group.beta1()) / (1 - group.beta1());
}

template <typename State>
at::Tensor adam_scale(const optim::OptimizerParamState* state, const v1::ParameterGroup& group) {
  const auto* moments = dynamic_cast<const State*>(state);
  if (moments == nullptr || !moments->exp_avg_sq().defined()) return {};
  const auto step = static_cast<double>(moments->step());
  const at::Tensor second = group.amsgrad() && moments->max_exp_avg_sq().defined()
                                ? moments->max_exp_avg_sq()
                                : moments->exp_avg_sq();
  const double correction = 1 - std::pow(group.beta2(), step);
  return ((second.to(at::kDouble) / correction).sqrt() + group.epsilon()) *
         (1 - std::pow(group.beta1(), step));
}

/// Diagonal of P for one parameter in float64; undefined where the optimizer has not moved it yet.
at::Tensor scale_of(const std::string& optimizer, const optim::OptimizerParamState* state,
                    const v1::ParameterGroup& group) {
  if (optimizer == "Adam") return adam_scale<optim::AdamParamState>(state, group);
  if (optimizer == "AdamW") return adam_scale<optim::AdamWParamState>(state, group);
  if (optimizer == "RMSprop") {
    const auto* averages = dynamic_cast<const optim::RMSpropParamState*>(state);
    if (averages == nullptr || !averages->square_avg().defined()) return {};
    at::Tensor second = averages->square_avg().to(at::kDouble);
    if (group.centered()) {
      if (!averages->grad_avg().defined()) return {};
      second = second - averages->grad_avg().to(at::kDouble).square();
    }
    return second.clamp_min(0).sqrt() + group.epsilon();
  }
  const auto* sums = dynamic_cast<const optim::AdagradParamState*>(state);
  // Before its first step the sum is what it was initialised with.
  if (sums == nullptr || !sums->sum().defined() || sums->step() == 0) return {};
  return (sums->sum().to(at::kDouble).sqrt() + group.epsilon()) *
         (1 + static_cast<double>(sums->step() - 1) * group.learning_rate_decay());
}

}  // namespace

Stability stability_of(optim::Optimizer& optimizer, const v1::OptimizerSettings& settings,
                       const LossSurface& surface, const std::vector<at::Tensor>& parameters) {
  Stability result;
  const std::string& name = settings.optimizer();
  if (name != "SGD" && name != "RMSprop" && name != "Adagrad" && name != "Adam" &&
      name != "AdamW") {
    result.unknown = fmt::format("no threshold is known for the optimizer {}", name);
    return result;
  }
  const double reference_rate = settings.group(0).learning_rate();
  const double reference_edge = edge_of(name, settings.group(0));
  if (!(reference_rate > 0)) {
    result.unknown = "the learning rate is 0";
    return result;
  }
  result.threshold = reference_edge / reference_rate;

  std::unordered_map<const c10::TensorImpl*, int> group_of;
  for (size_t i = 0; i < optimizer.param_groups().size(); ++i) {
    for (const at::Tensor& parameter : optimizer.param_groups()[i].params()) {
      group_of[parameter.unsafeGetTensorImpl()] = static_cast<int>(i);
    }
  }
  std::vector<at::Tensor> scales;
  std::vector<at::Tensor> decays;
  bool plain = true;
  bool decays_any = false;
  bool moves_any = false;
  for (size_t b = 0; b < parameters.size(); ++b) {
    const int64_t size = surface.blocks()[b].size;
    const auto found = group_of.find(parameters[b].unsafeGetTensorImpl());
    at::Tensor scale;
    double relative = kFixed;
    double decay = 0;
    if (found != group_of.end()) {
      const v1::ParameterGroup& group = settings.group(found->second);
      relative = (edge_of(name, group) / group.learning_rate()) / result.threshold;
      if (!group.decoupled_weight_decay()) decay = group.weight_decay();
      if (name == "SGD") {
        relative /= 1 - group.dampening();
      } else {
        scale = scale_of(name, compat::optimizer_state(optimizer, parameters[b]), group);
        if (!scale.defined()) relative = kFixed;
      }
    }
    moves_any = moves_any || std::isfinite(relative);
    plain = plain && !scale.defined() && relative == 1;
    decays_any = decays_any || decay != 0;
    scales.push_back(scale.defined() ? (scale * relative).reshape({-1}).to(surface.options())
                                     : at::full({size}, relative, surface.options()));
    decays.push_back(at::full({size}, decay, surface.options()));
  }
  if (!moves_any) {
    result.unknown = "the optimizer has not moved a parameter yet";
    return result;
  }
  if (!plain) result.preconditioner = at::cat(scales);
  if (decays_any) result.decay = at::cat(decays);
  return result;
}

}  // namespace tycho
