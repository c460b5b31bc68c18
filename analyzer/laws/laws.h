#pragma once

#include <memory>

#include "tycho/analyzer/law.h"

namespace tycho::analyzer {

// One law per file; the comment in its source derives the prediction.
std::unique_ptr<Law> make_edge_of_stability();
std::unique_ptr<Law> make_catapult();
std::unique_ptr<Law> make_warm_up();
std::unique_ptr<Law> make_batch_sharpness();
std::unique_ptr<Law> make_central_flow();
std::unique_ptr<Law> make_central_flow_loss();
std::unique_ptr<Law> make_hessian_outliers();
std::unique_ptr<Law> make_one_step_loss_change();
std::unique_ptr<Law> make_critical_sharpness_bound();
std::unique_ptr<Law> make_critical_sharpness_agreement();
std::unique_ptr<Law> make_implicit_regularization();
std::unique_ptr<Law> make_noise_curvature();
std::unique_ptr<Law> make_gradient_noise_scale();
std::unique_ptr<Law> make_spectral_condition();
std::unique_ptr<Law> make_learning_regime();
std::unique_ptr<Law> make_deep_linear_modes();
std::unique_ptr<Law> make_balancedness();
std::unique_ptr<Law> make_features_at_convergence();
std::unique_ptr<Law> make_neural_feature_ansatz();
std::unique_ptr<Law> make_neural_collapse();
std::unique_ptr<Law> make_weight_spectrum();
std::unique_ptr<Law> make_symmetry();
std::unique_ptr<Law> make_conservation();
std::unique_ptr<Law> make_rotational_equilibrium();
std::unique_ptr<Law> make_norm_stationarity();
std::unique_ptr<Law> make_fluctuation_dissipation();
std::unique_ptr<Law> make_adam_update_rms();
std::unique_ptr<Law> make_signal_propagation();
std::unique_ptr<Law> make_loss_forecast();
std::unique_ptr<Law> make_decay_gain();

}  // namespace tycho::analyzer
