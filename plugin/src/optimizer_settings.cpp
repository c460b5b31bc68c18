#include "optimizer_settings.h"

#include <torch/optim.h>

#include <limits>
#include <mutex>
#include <set>
#include <tuple>
#include <typeindex>

#include "torch_compat.h"

namespace tycho {
namespace optim = torch::optim;
namespace {

/// Options that do not answer throw, which costs a stack trace each time: asked once per class.
double learning_rate_of(const optim::OptimizerOptions& options) {
  static std::mutex mutex;
  static std::set<std::type_index> silent;
  const std::type_index type(typeid(options));
  const std::lock_guard<std::mutex> lock(mutex);
  if (silent.count(type) == 0) {
    try {
      return options.get_lr();
    } catch (...) {
      silent.insert(type);
    }
  }
  return std::numeric_limits<double>::quiet_NaN();
}

void read_group(const optim::OptimizerOptions& options, v1::ParameterGroup* group) {
  if (const auto* sgd = dynamic_cast<const optim::SGDOptions*>(&options)) {
    group->set_learning_rate(sgd->lr());
    group->set_momentum(sgd->momentum());
    group->set_dampening(sgd->dampening());
    group->set_nesterov(sgd->nesterov());
    group->set_weight_decay(sgd->weight_decay());
  } else if (const auto* adam = dynamic_cast<const optim::AdamOptions*>(&options)) {
    group->set_learning_rate(adam->lr());
    group->set_weight_decay(adam->weight_decay());
    group->set_beta1(std::get<0>(adam->betas()));
    group->set_beta2(std::get<1>(adam->betas()));
    group->set_epsilon(adam->eps());
    group->set_amsgrad(adam->amsgrad());
  } else if (const auto* adamw = dynamic_cast<const optim::AdamWOptions*>(&options)) {
    group->set_learning_rate(adamw->lr());
    group->set_weight_decay(adamw->weight_decay());
    group->set_decoupled_weight_decay(true);
    group->set_beta1(std::get<0>(adamw->betas()));
    group->set_beta2(std::get<1>(adamw->betas()));
    group->set_epsilon(adamw->eps());
    group->set_amsgrad(adamw->amsgrad());
  } else if (const auto* rmsprop = dynamic_cast<const optim::RMSpropOptions*>(&options)) {
    group->set_learning_rate(rmsprop->lr());
    group->set_alpha(rmsprop->alpha());
    group->set_epsilon(rmsprop->eps());
    group->set_weight_decay(rmsprop->weight_decay());
    group->set_momentum(rmsprop->momentum());
    group->set_centered(rmsprop->centered());
  } else if (const auto* adagrad = dynamic_cast<const optim::AdagradOptions*>(&options)) {
    group->set_learning_rate(adagrad->lr());
    group->set_learning_rate_decay(adagrad->lr_decay());
    group->set_weight_decay(adagrad->weight_decay());
    group->set_epsilon(adagrad->eps());
  } else if (const auto* lbfgs = dynamic_cast<const optim::LBFGSOptions*>(&options)) {
    group->set_learning_rate(lbfgs->lr());
  } else {
    group->set_learning_rate(learning_rate_of(options));
  }
}

template <typename State>
void copy_moments(const optim::OptimizerParamState* state, bool amsgrad, ParameterObservation* to) {
  const auto* moments = dynamic_cast<const State*>(state);
  if (moments == nullptr || !moments->exp_avg().defined()) return;
  to->adam_first_moment = moments->exp_avg();
  to->adam_second_moment = amsgrad && moments->max_exp_avg_sq().defined()
                               ? moments->max_exp_avg_sq()
                               : moments->exp_avg_sq();
  to->adam_step = moments->step();
}

std::string name_of(optim::Optimizer& optimizer) {
  if (dynamic_cast<optim::SGD*>(&optimizer) != nullptr) return "SGD";
  if (dynamic_cast<optim::Adam*>(&optimizer) != nullptr) return "Adam";
  if (dynamic_cast<optim::AdamW*>(&optimizer) != nullptr) return "AdamW";
  if (dynamic_cast<optim::RMSprop*>(&optimizer) != nullptr) return "RMSprop";
  if (dynamic_cast<optim::Adagrad*>(&optimizer) != nullptr) return "Adagrad";
  if (dynamic_cast<optim::LBFGS*>(&optimizer) != nullptr) return "LBFGS";
  return "unknown";
}

}  // namespace

std::string optimizer_name(const Optimizers& optimizers) {
  std::string all;
  for (optim::Optimizer* optimizer : optimizers) {
    all += (all.empty() ? "" : "+") + name_of(*optimizer);
  }
  return all;
}

std::string settings_fingerprint(const Optimizers& optimizers) {
  v1::OptimizerSettings settings;
  settings.set_optimizer(optimizer_name(optimizers));
  for (optim::Optimizer* optimizer : optimizers) {
    for (optim::OptimizerParamGroup& group : optimizer->param_groups()) {
      read_group(group.has_options() ? group.options() : optimizer->defaults(),
                 settings.add_group());
    }
  }
  return settings.SerializeAsString();
}

v1::OptimizerSettings settings_of(const std::string& fingerprint, const Optimizers& optimizers,
                                  const ParameterIds& ids) {
  v1::OptimizerSettings settings;
  settings.ParseFromString(fingerprint);
  int number = 0;
  for (optim::Optimizer* optimizer : optimizers) {
    for (optim::OptimizerParamGroup& group : optimizer->param_groups()) {
      if (number == settings.group_size()) return settings;
      v1::ParameterGroup* described = settings.mutable_group(number++);
      for (const at::Tensor& parameter : group.params()) {
        const auto found = ids.find(parameter.unsafeGetTensorImpl());
        if (found != ids.end()) described->add_parameter(found->second);
      }
    }
  }
  return settings;
}

void read_adam_state(const Optimizers& optimizers, const at::Tensor& parameter,
                     ParameterObservation* observation) {
  for (optim::Optimizer* optimizer : optimizers) {
    const bool adam = dynamic_cast<optim::Adam*>(optimizer) != nullptr;
    const bool adamw = !adam && dynamic_cast<optim::AdamW*>(optimizer) != nullptr;
    if (!adam && !adamw) continue;
    const auto* state = compat::optimizer_state(*optimizer, parameter);
    if (state == nullptr) continue;
    bool amsgrad = false;
    for (optim::OptimizerParamGroup& group : optimizer->param_groups()) {
      for (const at::Tensor& member : group.params()) {
        if (!member.is_same(parameter)) continue;
        const auto& options = group.has_options() ? group.options() : optimizer->defaults();
        amsgrad = adam ? static_cast<const optim::AdamOptions&>(options).amsgrad()
                       : static_cast<const optim::AdamWOptions&>(options).amsgrad();
      }
    }
    if (adam) copy_moments<optim::AdamParamState>(state, amsgrad, observation);
    if (adamw) copy_moments<optim::AdamWParamState>(state, amsgrad, observation);
  }
}

void SettingsWatch::install(const at::Tensor& parameter) {
  remove();
  at_backward_.clear();
  parameter_ = parameter;
  if (parameter.defined()) watch_.reset(new BackwardWatch(this));  // its base is private
}

void SettingsWatch::backward_begins() {
  if (!at_backward_.empty() || paused_ || !parameter_.requires_grad() || !parameter_.is_leaf() ||
      !torch::autograd::impl::try_get_grad_accumulator(parameter_)) {
    return;
  }
  // An exception would end the user's backward pass.
  try {
    at_backward_ = settings_fingerprint(optimizers_);
  } catch (...) {
    at_backward_.clear();
  }
}

std::string SettingsWatch::take() {
  remove();
  if (at_backward_.empty()) return settings_fingerprint(optimizers_);
  return std::move(at_backward_);
}

}  // namespace tycho
