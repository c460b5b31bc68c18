#pragma once

#include <string>

#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// Why gradient flow is not what the optimizer follows, in words; empty where it is: SGD of one
/// learning rate without weight decay. `momentum`: is it allowed?
inline std::string why_no_gradient_flow(const v1::OptimizerSettings* settings, bool momentum) {
  if (settings == nullptr || settings->group_size() == 0)
    return "the optimizer's settings were not recorded";
  if (settings->optimizer() != "SGD")
    return "derived for gradient descent; the optimizer is " + settings->optimizer();
  for (const v1::ParameterGroup& group : settings->group()) {
    if (group.weight_decay() != 0) return "weight decay moves the weights too";
    if (group.momentum() != 0 && !momentum) return "with momentum it is not conserved";
    if (group.learning_rate() != settings->group(0).learning_rate() ||
        group.momentum() != settings->group(0).momentum() ||
        group.dampening() != settings->group(0).dampening()) {
      return "parameter groups move at different speeds";
    }
  }
  return "";
}

}  // namespace tycho::analyzer
