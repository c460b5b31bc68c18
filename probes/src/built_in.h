#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// The smallest preset a built-in probe runs in.
enum class Tier {
  kEconomy,
  kStandard,
  kBudgeted,  ///< standard where there is a budget, which decides when; else full
  kFull,
};

struct BuiltInProbe {
  std::unique_ptr<Probe> probe;
  Tier tier = Tier::kFull;
  double expected_steps = 0;  ///< of training that an observation costs; 0: little
  /// Observations per factor of ten of steps that its laws need: for a verdict 16 in the recent
  /// half of them, which 12 per factor of ten are after 500 steps; for a description fewer.
  double per_decade = 12;
  /// Observed now and then whatever the budget says.
  bool guaranteed = false;
  /// Steps that make one observation, one after the other.
  int64_t steps_in_a_row = 1;
  /// LibTorch's names of the optimizers that its laws are stated for; empty: all. Under others no
  /// preset has it.
  std::vector<std::string> optimizers;
  /// Laws that need it most: what comes first where not all can be paid for.
  double laws = 1;
  /// Observed at every step that is observed at all; at every one that evaluates the probe loss:
  /// what others are read against.
  bool accompanies_all = false;
  bool accompanies_probe_loss = false;
  /// A probe that stands before it, and with which it is observed too where the budget decides:
  /// laws read both at once.
  std::string accompanies;
  /// Its values come from the trainer, between steps: no step observes it.
  bool given = false;
};

/// Every built-in probe, in the order in which they are observed and recorded.
std::vector<BuiltInProbe> built_in_probes();

// One factory per family; the family's file says what it computes.
std::unique_ptr<Probe> make_loss_probe();
std::unique_ptr<Probe> make_probe_loss_probe();
std::unique_ptr<Probe> make_scalars_probe();
std::unique_ptr<Probe> make_non_finite_probe();
std::unique_ptr<Probe> make_noise_probe();
std::unique_ptr<Probe> make_between_batches_probe();
std::unique_ptr<Probe> make_distinct_examples_probe();
std::unique_ptr<Probe> make_activations_probe();
std::unique_ptr<Probe> make_adam_probe();
std::unique_ptr<Probe> make_symmetry_probe();
std::unique_ptr<Probe> make_critical_sharpness_probe();
std::unique_ptr<Probe> make_loss_change_probe();
std::unique_ptr<Probe> make_directional_sharpness_probe();
std::unique_ptr<Probe> make_sharpness_probe();
std::unique_ptr<Probe> make_preconditioned_sharpness_probe();
std::unique_ptr<Probe> make_block_sharpness_probe();
std::unique_ptr<Probe> make_batch_sharpness_probe();
std::unique_ptr<Probe> make_hessian_trace_probe();
std::unique_ptr<Probe> make_hessian_spectrum_probe();
std::unique_ptr<Probe> make_implicit_regularization_probe();
std::unique_ptr<Probe> make_noise_curvature_probe();
std::unique_ptr<Probe> make_central_flow_probe();
std::unique_ptr<Probe> make_spectral_norms_probe();
std::unique_ptr<Probe> make_update_alignment_probe();
std::unique_ptr<Probe> make_weight_spectrum_probe();
std::unique_ptr<Probe> make_linear_modes_probe();
std::unique_ptr<Probe> make_features_probe();
std::unique_ptr<Probe> make_representation_probe();
std::unique_ptr<Probe> make_tangent_kernel_probe();
std::unique_ptr<Probe> make_feature_ansatz_probe();
std::unique_ptr<Probe> make_neural_collapse_probe();
std::unique_ptr<Probe> make_attention_probe();
std::unique_ptr<Probe> make_validation_probe();

}  // namespace tycho
