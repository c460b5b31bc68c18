#pragma once

#include <torch/optim.h>

#include <cstdint>
#include <string>
#include <unordered_map>

#include "tycho/probe.h"

namespace tycho {

/// Parameter ids by TensorImpl.
using ParameterIds = std::unordered_map<const void*, uint32_t>;

/// LibTorch's class name of the optimizer, or "unknown".
std::string optimizer_name(torch::optim::Optimizer& optimizer);
/// Settings in force now, without parameters, as bytes that can be compared.
std::string settings_fingerprint(torch::optim::Optimizer& optimizer);
/// The settings of a fingerprint with the parameters the groups hold now; step is left 0.
/// Parameters that are not in `ids` are left out.
v1::OptimizerSettings settings_of(const std::string& fingerprint,
                                  torch::optim::Optimizer& optimizer, const ParameterIds& ids);
/// Fills the adam_* fields of an observation; leaves them alone where the optimizer is no Adam.
void read_adam_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter,
                     ParameterObservation* observation);

}  // namespace tycho
