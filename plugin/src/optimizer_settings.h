#pragma once

#include <torch/optim.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backward_watch.h"
#include "tycho/probe.h"

namespace tycho {

/// Parameter ids by TensorImpl.
using ParameterIds = std::unordered_map<const void*, uint32_t>;

/// The optimizers that train the model; at least one, none null. Their groups count through.
struct Optimizers : std::vector<torch::optim::Optimizer*> {
  Optimizers(torch::optim::Optimizer& one) : vector{&one} {}  // NOLINT: as one is passed
  explicit Optimizers(std::vector<torch::optim::Optimizer*> several) : vector(std::move(several)) {}
};

/// LibTorch's class name of the optimizer, or "unknown". Of several, their names with plus signs
/// between: nothing that holds for one class is claimed of them.
std::string optimizer_name(const Optimizers& optimizers);
/// Settings in force now, without parameters, as bytes that can be compared. The learning rate of
/// an optimizer of the user's own is what its options answer to get_lr(), NaN where they do not.
std::string settings_fingerprint(const Optimizers& optimizers);
/// The settings of a fingerprint with the parameters the groups hold now; step is left 0.
/// Parameters that are not in `ids` are left out.
v1::OptimizerSettings settings_of(const std::string& fingerprint, const Optimizers& optimizers,
                                  const ParameterIds& ids);
/// Tells which settings a step used, whether a scheduler is called before or after Session::step:
/// those in force when the model's first backward pass of the step began.
class SettingsWatch : private BackwardListener {
 public:
  /// The optimizers outlive the watch.
  explicit SettingsWatch(Optimizers optimizers) : optimizers_(std::move(optimizers)) {}
  ~SettingsWatch() override { remove(); }
  SettingsWatch(const SettingsWatch&) = delete;
  SettingsWatch& operator=(const SettingsWatch&) = delete;

  /// Watches one step: passes that reach `parameter`, if it is a leaf that needs a gradient.
  void install(const at::Tensor& parameter);
  /// A backward pass while paused is none of the step's.
  void set_paused(bool paused) { paused_ = paused; }
  /// The fingerprint of the settings the step used; of those in force now where backward never
  /// reached the parameter. Watches no longer.
  std::string take();
  void remove() { watch_.reset(); }

 private:
  void backward_begins() override;

  Optimizers optimizers_;
  at::Tensor parameter_;
  std::string at_backward_;
  std::atomic<bool> paused_{false};
  std::unique_ptr<BackwardWatch> watch_;
};

/// Fills the adam_* fields of an observation; leaves them alone where no optimizer that holds the
/// parameter is an Adam.
void read_adam_state(const Optimizers& optimizers, const at::Tensor& parameter,
                     ParameterObservation* observation);

}  // namespace tycho
