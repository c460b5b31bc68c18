#include "laws/changed_gradients.h"

#include <fmt/format.h>

#include <cmath>

#include "laws/law_support.h"
#include "src/statistics/identity_errors.h"

namespace tycho::analyzer {
namespace {

constexpr double kAligned = 1e-3;     // of 1 - cosine
constexpr double kScaled = 0.01;      // of the factor's distance from 1
constexpr double kLeastUpdate = 100;  // |dtheta|/|theta|, in units of the format's epsilon
constexpr uint64_t kFewest = 2;       // steps

}  // namespace

void ChangedGradients::begin(const RunContext& context) {
  context_ = &context;
  gradient_ = context.column("grad_norm_sq", v1::SCOPE_PARAMETER);
  update_ = context.column("update_norm_sq", v1::SCOPE_PARAMETER);
  weight_ = context.column("weight_norm_sq", v1::SCOPE_PARAMETER);
  gradient_update_ = context.column("grad_dot_update", v1::SCOPE_PARAMETER);
  weight_gradient_ = context.column("weight_dot_grad", v1::SCOPE_PARAMETER);
  weight_update_ = context.column("weight_dot_update", v1::SCOPE_PARAMETER);
  settings_version_ = 0;
  least_update_.clear();
  for (const v1::Parameter& parameter : context.model().parameter()) {
    const double least = kLeastUpdate * IdentityErrors::epsilon(parameter.dtype());
    least_update_.push_back(least * least);
  }
}

void ChangedGradients::observe(const Frame& frame) {
  if (frame.optimizer() == nullptr) return;
  if (frame.optimizer_version() != settings_version_) {
    settings_version_ = frame.optimizer_version();
    settings_ = settings_by_parameter(frame.optimizer(),
                                      static_cast<size_t>(context_->model().parameter_size()));
  }
  const ColumnValues gradient = frame.column(gradient_);
  const ColumnValues update = frame.column(update_);
  if (!gradient.present || !update.present) return;
  const ColumnValues weight = frame.column(weight_);
  const ColumnValues gradient_update = frame.column(gradient_update_);
  const ColumnValues weight_gradient = frame.column(weight_gradient_);
  const ColumnValues weight_update = frame.column(weight_update_);
  bool tested = false;
  bool scaled = false;
  bool turned = false;
  for (size_t i = 0; i < settings_.size(); ++i) {
    const ParameterSettings& s = settings_[i];
    if (s.optimizer != "SGD" || s.momentum != 0 || s.dampening != 0 || !(s.learning_rate > 0))
      continue;
    if (!(update[i] > least_update_[i] * weight[i])) continue;
    // a = dtheta + eta lambda theta, which is -eta times the gradient that the optimizer was given.
    const double decay = s.decoupled_weight_decay ? 0 : s.learning_rate * s.weight_decay;
    const double a_g = gradient_update[i] + decay * weight_gradient[i];
    const double a_a = update[i] + 2 * decay * weight_update[i] + decay * decay * weight[i];
    if (!(gradient[i] > 0) || !(a_a > 0)) continue;
    tested = true;
    const double cosine = -a_g / std::sqrt(a_a * gradient[i]);
    const double factor = -a_g / (s.learning_rate * gradient[i]);
    if (!(cosine > 1 - kAligned)) {
      turned = true;
    } else if (std::fabs(factor - 1) > kScaled) {
      scaled = true;
      last_factor_ = factor;
    }
  }
  steps_ += tested;
  scaled_ += scaled;
  turned_ += turned;
}

std::string ChangedGradients::evidence() const {
  for (const v1::Event& event : context_->events()) {
    if (event.code() == "gradients_changed" || event.code() == "gradient_changed_before_step")
      return "the session saw that gradients were changed between backward and the optimizer's "
             "step (clipped?)";
  }
  if (scaled_ + turned_ < kFewest) return "";
  if (turned_ >= kFewest) {
    return fmt::format(
        "at {} of {} steps the update is not the one that the settings and the gradients of "
        "backward give: gradients are changed before the step (clipped by value?), or other "
        "code writes the weights",
        turned_, steps_);
  }
  return fmt::format(
      "gradients are scaled between backward and the optimizer's step (clipped?): at {} of {} "
      "steps the update is a multiple of the gradient other than the learning rate, at the last "
      "step {} times it",
      scaled_, steps_, format_number(last_factor_));
}

}  // namespace tycho::analyzer
