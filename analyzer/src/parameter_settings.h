#pragma once

#include <string>
#include <vector>

#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// What the optimizer does to one parameter.
struct ParameterSettings {
  bool known = false;  ///< some group of the optimizer holds the parameter
  std::string optimizer;
  double learning_rate = 0;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
  double weight_decay = 0;
  bool decoupled_weight_decay = false;
  double beta1 = 0;
  double beta2 = 0;
  bool amsgrad = false;

  bool is_adam() const { return optimizer == "Adam" || optimizer == "AdamW"; }
  bool decays_decoupled() const { return decoupled_weight_decay || optimizer == "AdamW"; }
  bool operator==(const ParameterSettings& other) const;
  bool operator!=(const ParameterSettings& other) const { return !(*this == other); }
};

/// By parameter id. `settings` may be nullptr.
std::vector<ParameterSettings> settings_by_parameter(const v1::OptimizerSettings* settings,
                                                     size_t parameters);

}  // namespace tycho::analyzer
