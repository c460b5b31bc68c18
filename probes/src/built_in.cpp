#include "built_in.h"

namespace tycho {

std::vector<BuiltInProbe> built_in_probes() {
  std::vector<BuiltInProbe> probes;
  probes.push_back({make_loss_probe(), Tier::kEconomy});
  probes.push_back({make_scalars_probe(), Tier::kEconomy});
  probes.push_back({make_non_finite_probe(), Tier::kEconomy});
  probes.push_back({make_noise_probe(), Tier::kStandard});
  probes.push_back({make_activations_probe(), Tier::kStandard});
  probes.push_back({make_adam_probe(), Tier::kStandard});
  probes.push_back({make_symmetry_probe(), Tier::kStandard});
  return probes;
}

}  // namespace tycho
