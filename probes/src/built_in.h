#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// From which preset on a built-in probe runs.
enum class Tier { kEconomy, kStandard, kFull };

struct BuiltInProbe {
  std::unique_ptr<Probe> probe;
  Tier tier;
};

/// Every built-in probe, in the order in which they are observed and recorded.
std::vector<BuiltInProbe> built_in_probes();

// One factory per family; the family's file says what it computes.
std::unique_ptr<Probe> make_loss_probe();
std::unique_ptr<Probe> make_scalars_probe();
std::unique_ptr<Probe> make_non_finite_probe();
std::unique_ptr<Probe> make_noise_probe();
std::unique_ptr<Probe> make_activations_probe();
std::unique_ptr<Probe> make_adam_probe();
std::unique_ptr<Probe> make_symmetry_probe();

}  // namespace tycho
