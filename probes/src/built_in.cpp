#include "built_in.h"

#include <utility>

namespace tycho {

std::vector<BuiltInProbe> built_in_probes() {
  std::vector<BuiltInProbe> probes;
  // The reference is good until the next call.
  const auto add = [&probes](std::unique_ptr<Probe> probe, Tier tier,
                             double expected_steps = 0) -> BuiltInProbe& {
    BuiltInProbe row;
    row.probe = std::move(probe);
    row.tier = tier;
    row.expected_steps = expected_steps;
    probes.push_back(std::move(row));
    return probes.back();
  };
  BuiltInProbe& loss = add(make_loss_probe(), Tier::kEconomy);
  loss.guaranteed = true;
  loss.accompanies_all = true;
  add(make_probe_loss_probe(), Tier::kEconomy, 1).accompanies_probe_loss = true;
  add(make_scalars_probe(), Tier::kEconomy).guaranteed = true;
  add(make_non_finite_probe(), Tier::kEconomy);
  add(make_noise_probe(), Tier::kStandard);
  add(make_between_batches_probe(), Tier::kBudgeted, 3).steps_in_a_row = 2;
  add(make_distinct_examples_probe(), Tier::kStandard, 1).per_decade = 6;
  add(make_activations_probe(), Tier::kStandard);
  add(make_adam_probe(), Tier::kStandard).optimizers = {"Adam", "AdamW"};
  add(make_symmetry_probe(), Tier::kStandard, 1).per_decade = 6;
  BuiltInProbe& critical = add(make_critical_sharpness_probe(), Tier::kStandard, 4);
  critical.per_decade = 6;
  critical.laws = 2;
  BuiltInProbe& change = add(make_loss_change_probe(), Tier::kBudgeted, 6);
  change.laws = 2;
  change.accompanies = "critical_sharpness";
  add(make_directional_sharpness_probe(), Tier::kFull, 5);
  add(make_sharpness_probe(), Tier::kFull, 30);
  add(make_preconditioned_sharpness_probe(), Tier::kBudgeted, 30).laws = 4;
  add(make_block_sharpness_probe(), Tier::kFull, 150);
  add(make_batch_sharpness_probe(), Tier::kBudgeted, 5).optimizers = {"SGD"};
  add(make_hessian_trace_probe(), Tier::kFull, 50);
  add(make_hessian_spectrum_probe(), Tier::kBudgeted, 400).per_decade = 6;
  add(make_implicit_regularization_probe(), Tier::kBudgeted, 15);
  add(make_noise_curvature_probe(), Tier::kBudgeted, 60);
  add(make_central_flow_probe(), Tier::kBudgeted, 80).laws = 2;
  add(make_spectral_norms_probe(), Tier::kBudgeted, 1);
  add(make_update_alignment_probe(), Tier::kFull, 2);
  add(make_weight_spectrum_probe(), Tier::kBudgeted, 8).per_decade = 4;
  add(make_linear_modes_probe(), Tier::kBudgeted, 2);
  add(make_features_probe(), Tier::kBudgeted, 3).per_decade = 4;
  add(make_representation_probe(), Tier::kFull, 3);
  add(make_tangent_kernel_probe(), Tier::kBudgeted, 8).per_decade = 4;
  add(make_feature_ansatz_probe(), Tier::kBudgeted, 20).per_decade = 6;
  add(make_neural_collapse_probe(), Tier::kBudgeted, 3);
  add(make_attention_probe(), Tier::kFull, 3);
  add(make_validation_probe(), Tier::kEconomy).given = true;
  return probes;
}

}  // namespace tycho
