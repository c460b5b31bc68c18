#include "src/parameter_settings.h"

#include <tuple>

namespace tycho::analyzer {
namespace {

auto all_fields(const ParameterSettings& s) {
  return std::tie(s.known, s.optimizer, s.learning_rate, s.momentum, s.dampening, s.nesterov,
                  s.weight_decay, s.decoupled_weight_decay, s.beta1, s.beta2, s.amsgrad);
}

}  // namespace

bool ParameterSettings::operator==(const ParameterSettings& other) const {
  return all_fields(*this) == all_fields(other);
}

std::vector<ParameterSettings> settings_by_parameter(const v1::OptimizerSettings* settings,
                                                     size_t parameters) {
  std::vector<ParameterSettings> result(parameters);
  if (settings == nullptr) return result;
  for (const v1::ParameterGroup& group : settings->group()) {
    ParameterSettings shared;
    shared.known = true;
    shared.optimizer = settings->optimizer();
    shared.learning_rate = group.learning_rate();
    shared.momentum = group.momentum();
    shared.dampening = group.dampening();
    shared.nesterov = group.nesterov();
    shared.weight_decay = group.weight_decay();
    shared.decoupled_weight_decay = group.decoupled_weight_decay();
    shared.beta1 = group.beta1();
    shared.beta2 = group.beta2();
    shared.amsgrad = group.amsgrad();
    for (const uint32_t id : group.parameter()) {
      if (id < parameters) result[id] = shared;
    }
  }
  return result;
}

}  // namespace tycho::analyzer
