#include "laws/laws.h"

namespace tycho::analyzer {

std::vector<std::unique_ptr<Law>> make_laws() {
  std::vector<std::unique_ptr<Law>> laws;
  laws.push_back(make_gradient_noise_scale());
  laws.push_back(make_edge_of_stability());
  laws.push_back(make_catapult());
  laws.push_back(make_warm_up());
  laws.push_back(make_batch_sharpness());
  laws.push_back(make_central_flow());
  laws.push_back(make_central_flow_loss());
  laws.push_back(make_hessian_outliers());
  laws.push_back(make_one_step_loss_change());
  laws.push_back(make_critical_sharpness_bound());
  laws.push_back(make_critical_sharpness_agreement());
  laws.push_back(make_implicit_regularization());
  laws.push_back(make_noise_curvature());
  laws.push_back(make_rotational_equilibrium());
  laws.push_back(make_norm_stationarity());
  laws.push_back(make_fluctuation_dissipation());
  laws.push_back(make_adam_update_rms());
  laws.push_back(make_loss_forecast());
  laws.push_back(make_decay_gain());
  laws.push_back(make_signal_propagation());
  laws.push_back(make_spectral_condition());
  laws.push_back(make_learning_regime());
  laws.push_back(make_deep_linear_modes());
  laws.push_back(make_balancedness());
  laws.push_back(make_features_at_convergence());
  laws.push_back(make_neural_feature_ansatz());
  laws.push_back(make_neural_collapse());
  laws.push_back(make_weight_spectrum());
  laws.push_back(make_symmetry());
  laws.push_back(make_conservation());
  return laws;
}

}  // namespace tycho::analyzer
