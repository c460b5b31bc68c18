#include "optimizer_settings.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/optim.h>

#include <tuple>

#include "torch_compat.h"

namespace tycho {
namespace optim = torch::optim;
namespace {

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

}  // namespace

std::string optimizer_name(optim::Optimizer& optimizer) {
  if (dynamic_cast<optim::SGD*>(&optimizer) != nullptr) return "SGD";
  if (dynamic_cast<optim::Adam*>(&optimizer) != nullptr) return "Adam";
  if (dynamic_cast<optim::AdamW*>(&optimizer) != nullptr) return "AdamW";
  if (dynamic_cast<optim::RMSprop*>(&optimizer) != nullptr) return "RMSprop";
  if (dynamic_cast<optim::Adagrad*>(&optimizer) != nullptr) return "Adagrad";
  if (dynamic_cast<optim::LBFGS*>(&optimizer) != nullptr) return "LBFGS";
  return "unknown";
}

std::string settings_fingerprint(optim::Optimizer& optimizer) {
  v1::OptimizerSettings settings;
  settings.set_optimizer(optimizer_name(optimizer));
  for (optim::OptimizerParamGroup& group : optimizer.param_groups()) {
    read_group(group.has_options() ? group.options() : optimizer.defaults(), settings.add_group());
  }
  return settings.SerializeAsString();
}

v1::OptimizerSettings settings_of(const std::string& fingerprint, optim::Optimizer& optimizer,
                                  const ParameterIds& ids) {
  v1::OptimizerSettings settings;
  settings.ParseFromString(fingerprint);
  auto& groups = optimizer.param_groups();
  for (size_t i = 0; i < groups.size() && i < static_cast<size_t>(settings.group_size()); ++i) {
    for (const at::Tensor& parameter : groups[i].params()) {
      const auto found = ids.find(parameter.unsafeGetTensorImpl());
      if (found == ids.end()) continue;
      settings.mutable_group(static_cast<int>(i))->add_parameter(found->second);
    }
  }
  return settings;
}

void read_adam_state(optim::Optimizer& optimizer, const at::Tensor& parameter,
                     ParameterObservation* observation) {
  const bool adam = dynamic_cast<optim::Adam*>(&optimizer) != nullptr;
  const bool adamw = !adam && dynamic_cast<optim::AdamW*>(&optimizer) != nullptr;
  if (!adam && !adamw) return;
  const auto* state = compat::optimizer_state(optimizer, parameter);
  if (state == nullptr) return;
  bool amsgrad = false;
  for (optim::OptimizerParamGroup& group : optimizer.param_groups()) {
    for (const at::Tensor& member : group.params()) {
      if (!member.is_same(parameter)) continue;
      const auto& options = group.has_options() ? group.options() : optimizer.defaults();
      amsgrad = adam ? static_cast<const optim::AdamOptions&>(options).amsgrad()
                     : static_cast<const optim::AdamWOptions&>(options).amsgrad();
    }
  }
  if (adam) copy_moments<optim::AdamParamState>(state, amsgrad, observation);
  if (adamw) copy_moments<optim::AdamWParamState>(state, amsgrad, observation);
}

struct SettingsWatch::State {
  struct Hook : torch::autograd::FunctionPostHook {
    explicit Hook(State* state) : state(state) {}
    torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                              const torch::autograd::variable_list&) override {
      // An exception would end the user's backward pass.
      try {
        if (state->at_backward.empty() && !state->paused) {
          state->at_backward = settings_fingerprint(*state->optimizer);
        }
      } catch (...) {
        state->at_backward.clear();
      }
      return outputs;
    }
    State* state;
  };

  torch::optim::Optimizer* optimizer;
  compat::GradientAccumulator accumulator;
  uintptr_t key = 0;
  std::string at_backward;
  bool paused = false;
};

SettingsWatch::SettingsWatch(torch::optim::Optimizer& optimizer)
    : state_(std::make_unique<State>()) {
  state_->optimizer = &optimizer;
}

SettingsWatch::~SettingsWatch() { remove(); }

void SettingsWatch::install(const at::Tensor& parameter) {
  remove();
  state_->at_backward.clear();
  if (!parameter.defined() || !parameter.requires_grad() || !parameter.is_leaf()) return;
  state_->accumulator = torch::autograd::impl::grad_accumulator(parameter);
  if (!state_->accumulator) return;
  state_->key = state_->accumulator->add_post_hook(std::make_unique<State::Hook>(state_.get()));
}

void SettingsWatch::set_paused(bool paused) { state_->paused = paused; }

std::string SettingsWatch::take() {
  remove();
  if (state_->at_backward.empty()) return settings_fingerprint(*state_->optimizer);
  return std::move(state_->at_backward);
}

void SettingsWatch::remove() {
  if (!state_->accumulator) return;
  state_->accumulator->del_post_hook(state_->key);
  state_->accumulator = compat::GradientAccumulator();
}

}  // namespace tycho
