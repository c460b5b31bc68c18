#pragma once

#include <torch/optim.h>

#include <cstdint>
#include <memory>
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
/// Tells which settings a step used, whether a scheduler is called before or after Session::step:
/// those in force when the gradient of one parameter arrived.
class SettingsWatch {
 public:
  /// The optimizer outlives the watch.
  explicit SettingsWatch(torch::optim::Optimizer& optimizer);
  ~SettingsWatch();
  SettingsWatch(const SettingsWatch&) = delete;
  SettingsWatch& operator=(const SettingsWatch&) = delete;

  /// Watches one step. A parameter that is no leaf or needs no gradient is not watched.
  void install(const at::Tensor& parameter);
  /// A backward pass while paused is none of the step's.
  void set_paused(bool paused);
  /// The fingerprint of the settings the step used; of those in force now where backward never
  /// reached the parameter. Watches no longer.
  std::string take();
  void remove();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Fills the adam_* fields of an observation; leaves them alone where the optimizer is no Adam.
void read_adam_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter,
                     ParameterObservation* observation);

}  // namespace tycho
