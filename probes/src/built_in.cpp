#include "built_in.h"

namespace tycho {

std::vector<BuiltInProbe> built_in_probes() {
  std::vector<BuiltInProbe> probes;
  probes.push_back({make_loss_probe(), Tier::kEconomy, 0, 12, true});
  probes.push_back({make_probe_loss_probe(), Tier::kEconomy, 1});
  probes.push_back({make_scalars_probe(), Tier::kEconomy, 0, 12, true});
  probes.push_back({make_non_finite_probe(), Tier::kEconomy});
  probes.push_back({make_noise_probe(), Tier::kStandard});
  probes.push_back({make_between_batches_probe(), Tier::kBudgeted, 3, 12, false, 2});
  probes.push_back({make_distinct_examples_probe(), Tier::kStandard});
  probes.push_back({make_activations_probe(), Tier::kStandard});
  probes.push_back({make_adam_probe(), Tier::kStandard});
  probes.push_back({make_symmetry_probe(), Tier::kStandard});
  probes.push_back({make_critical_sharpness_probe(), Tier::kStandard, 4, 6});
  probes.push_back({make_loss_change_probe(), Tier::kBudgeted, 6});
  probes.push_back({make_directional_sharpness_probe(), Tier::kFull, 5});
  probes.push_back({make_sharpness_probe(), Tier::kFull, 80});
  probes.push_back({make_preconditioned_sharpness_probe(), Tier::kBudgeted, 80});
  probes.push_back({make_block_sharpness_probe(), Tier::kFull, 150});
  probes.push_back({make_batch_sharpness_probe(), Tier::kBudgeted, 5});
  probes.push_back({make_hessian_trace_probe(), Tier::kFull, 50});
  probes.push_back({make_hessian_spectrum_probe(), Tier::kBudgeted, 400, 6});
  probes.push_back({make_implicit_regularization_probe(), Tier::kBudgeted, 15});
  probes.push_back({make_noise_curvature_probe(), Tier::kBudgeted, 60});
  probes.push_back({make_central_flow_probe(), Tier::kBudgeted, 120});
  probes.push_back({make_spectral_norms_probe(), Tier::kBudgeted, 1});
  probes.push_back({make_update_alignment_probe(), Tier::kFull, 2});
  probes.push_back({make_weight_spectrum_probe(), Tier::kBudgeted, 100, 4});
  probes.push_back({make_linear_modes_probe(), Tier::kBudgeted, 2});
  probes.push_back({make_features_probe(), Tier::kBudgeted, 3, 4});
  probes.push_back({make_representation_probe(), Tier::kFull, 3});
  probes.push_back({make_tangent_kernel_probe(), Tier::kBudgeted, 8, 4});
  probes.push_back({make_feature_ansatz_probe(), Tier::kBudgeted, 20, 6});
  probes.push_back({make_neural_collapse_probe(), Tier::kBudgeted, 3});
  probes.push_back({make_attention_probe(), Tier::kFull, 3});
  return probes;
}

}  // namespace tycho
