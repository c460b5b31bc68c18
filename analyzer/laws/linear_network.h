#pragma once

#include <string>

#include "laws/availability.h"
#include "laws/law_support.h"
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

/// Of a law on linear networks whose modes were not recorded: NOT_APPLICABLE where the probe said
/// that the model is none, else NOT_MEASURED and why.
inline void explain_missing_modes(Finding& finding, const RunContext& context) {
  for (const v1::Event& event : context.events()) {
    if (event.code() == "linear_modes_not_observed") {
      set_not_applicable(finding, event.message());
      return;
    }
  }
  std::string why_not;
  for (const v1::Layer& layer : context.model().layer()) {
    if (layer.type().find("Linear") == std::string::npos && !layer.type().empty())
      why_not = "layer " + layer.path() + " is a " + layer.type();
  }
  for (const v1::Parameter& parameter : context.model().parameter()) {
    if (parameter.role() == "bias") why_not = "there are biases";
  }
  if (context.structure() != nullptr) {
    for (const v1::LayerFact& fact : context.structure()->fact()) {
      if (!fact.nonlinearity().empty()) why_not = fact.nonlinearity() + " is not linear";
    }
  }
  if (!why_not.empty())
    return set_not_applicable(finding, "the model is not a chain of linear layers: " + why_not);
  set_not_measured(finding, context, "the modes of a linear network were", {"mode_strength"});
}

}  // namespace tycho::analyzer
