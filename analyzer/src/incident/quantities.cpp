#include "src/incident/quantities.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tycho::analyzer {
namespace {

constexpr double kZero = -100;
constexpr double kLargest = 3e38;
constexpr double kByThirty = 0.26;  // ln 1.3: by thirty percent
constexpr double kByFive = 0.05;    // ln 1.05
constexpr double kTenth = 0.1;      // of all units

}  // namespace

const std::vector<Quantity>& watched_quantities() {
  using Scale = Quantity::Scale;
  static const std::vector<Quantity> all = {
      {"loss", "the loss", "", "loss", "", v1::SCOPE_RUN, Scale::kPlain, 0, true},
      {"learning_rate", "the learning rate", "", "learning_rate", "", v1::SCOPE_RUN,
       Scale::kLogarithm, kByThirty, true},
      {"gradient", "the norm of the gradient", "", "grad_norm_sq", "", v1::SCOPE_LAYER,
       Scale::kRoot, kByThirty, false},
      {"update_size", "the norm of the update over that of the weights", "", "update_norm_sq",
       "weight_norm_sq", v1::SCOPE_LAYER, Scale::kRoot, kByThirty, false},
      {"weights", "the norm of the weights", "", "weight_norm_sq", "", v1::SCOPE_LAYER,
       Scale::kRoot, kByFive, false},
      {"output", "the size of the output", "", "activation_rms", "", v1::SCOPE_LAYER,
       Scale::kLogarithm, kByThirty, false},
      {"output_gradient", "the size of the gradient at the output", "", "activation_grad_rms", "",
       v1::SCOPE_LAYER, Scale::kLogarithm, kByThirty, false},
      {"dead_units", "the share of silent units", "", "dead_fraction", "", v1::SCOPE_LAYER,
       Scale::kPlain, kTenth, false},
      {"adam_update", "the size of Adam's update before the learning rate",
       "above 1 the second moment lags behind gradients that grow", "adam_update_rms", "",
       v1::SCOPE_LAYER, Scale::kLogarithm, kByThirty, true},
      {"attention_logit", "the largest attention logit", "", "attention_largest_logit", "",
       v1::SCOPE_LAYER, Scale::kLogarithm, kByThirty, true},
      {"gradient_noise", "the variance of single examples' gradients", "", "grad_noise_trace", "",
       v1::SCOPE_LAYER, Scale::kLogarithm, kByThirty, false},
      {"sharpness", "the sharpness over the edge of stability",
       "above 1 a step overshoots along the sharpest direction", "preconditioned_sharpness",
       "stability_threshold", v1::SCOPE_RUN, Scale::kLogarithm, kByThirty, true},
  };
  return all;
}

double on_scale(const Quantity& quantity, double value) {
  if (!std::isfinite(value)) return std::numeric_limits<double>::infinity();
  if (quantity.scale == Quantity::Scale::kPlain) return std::clamp(value, -kLargest, kLargest);
  if (!(value > 0)) return kZero;
  return quantity.scale == Quantity::Scale::kRoot ? std::log(value) / 2 : std::log(value);
}

double from_scale(const Quantity& quantity, double scaled) {
  if (quantity.scale == Quantity::Scale::kPlain) return scaled;
  return scaled <= kZero ? 0 : std::exp(scaled);
}

}  // namespace tycho::analyzer
