#include "activation_watch.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

namespace tycho {

namespace operators = layer_operators;

// The operator that runs.
struct ActivationWatch::Operator {
  std::string name;
  std::vector<ParameterUse> uses;
  struct Input {
    size_t position;
    const Track* track;  // nullptr: nothing is known of it
    at::Tensor tensor;
    bool number;  // without dimensions
  };
  std::vector<Input> inputs;  // that are no parameters
  bool idle = true;           // nothing about it is of interest
};

ActivationWatch::ActivationWatch(const ModelInfo& model, WorkMeter* hooks)
    : model_(model), hooks_(hooks), operator_(std::make_unique<Operator>()) {}

ActivationWatch::~ActivationWatch() {
  if (step_) step_->stop();
}

void ActivationWatch::begin(const Needs& needs) {
  needs_ = needs;
  tracks_.clear();
  step_ = std::make_shared<StepOutputs>(model_.layers.size(), needs, hooks_);
}

void ActivationWatch::set_paused(bool paused) {
  if (step_) step_->set_paused(paused);
}

const ActivationWatch::Track* ActivationWatch::find(const at::Tensor& tensor) const {
  const auto found = tracks_.find(tensor.unsafeGetTensorImpl());
  if (found == tracks_.end() || found->second.tensor.expired()) return nullptr;
  return &found->second;
}

ActivationWatch::Track& ActivationWatch::start_track(const at::Tensor& tensor) {
  Track fresh{
      c10::weak_intrusive_ptr<c10::TensorImpl>(tensor.getIntrusivePtr()), {}, false, {}, false, {}};
  return tracks_.insert_or_assign(tensor.unsafeGetTensorImpl(), std::move(fresh)).first->second;
}

void ActivationWatch::look_at(const at::Tensor& tensor, size_t position) {
  if (!tensor.defined()) return;
  for (const ParameterUse& use : operator_->uses) {
    if (use.argument.is_same(tensor)) return;
  }
  const Track* track = find(tensor);
  operator_->inputs.push_back({position, track, tensor, tensor.dim() == 0});
}

void ActivationWatch::before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
                             const std::vector<ParameterUse>& uses) {
  Operator& now = *operator_;
  now.idle = true;
  if (!wanted() || !step_) return;
  now.uses.clear();
  now.inputs.clear();
  // Most operators see nothing that is followed.
  bool idle = uses.empty();
  bool tensors = false;
  const auto glance = [&](const at::Tensor& tensor) {
    tensors = tensors || tensor.defined();
    idle = idle && (!tensor.defined() || find(tensor) == nullptr);
  };
  for (size_t i = 0; i < inputs.size() && idle; ++i) {
    if (inputs[i].isTensor()) glance(inputs[i].toTensor());
    if (!inputs[i].isTensorList()) continue;
    for (const at::Tensor& tensor : inputs[i].toTensorVector()) glance(tensor);
  }
  // Constants are followed from where they are made.
  if (idle && (tensors || operators::draws_numbers(name))) return;
  now.idle = false;
  now.uses = uses;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].isTensor()) look_at(inputs[i].toTensor(), i);
    if (!inputs[i].isTensorList()) continue;
    for (const at::Tensor& tensor : inputs[i].toTensorVector()) look_at(tensor, i);
  }
  now.name.assign(name.begin(), name.end());
  if (!needs_.activations || now.inputs.empty() || !uses.empty()) return;
  const Operator::Input& first = now.inputs.front();
  if (first.position != 0 || first.track == nullptr || !first.track->exact) return;
  if (first.track->reshaped) return;  // Which dimension holds the units is not followed.
  if (operators::is_relu(name, inputs)) {
    const auto lock = step_->lock();
    StepOutputs::look_behind_relu(first.track->exact.get(), first.tensor);
  }
}

// Whether a layer's module lies within that of another.
bool ActivationWatch::descends(uint32_t layer, uint32_t from) const {
  const std::string& inner = model_.layers[layer].path;
  const std::string& outer = model_.layers[from].path;
  return outer.empty() || (inner.size() > outer.size() && inner[outer.size()] == '.' &&
                           inner.compare(0, outer.size(), outer) == 0);
}

void ActivationWatch::after(const at::Tensor& output) {
  if (operator_->idle || !step_) return;
  {
    const auto lock = step_->lock();
    after_operator(output);
  }
  // No tensor is kept longer than its operator runs.
  operator_->idle = true;
  operator_->inputs.clear();
  operator_->uses.clear();
}

void ActivationWatch::after_operator(const at::Tensor& output) {
  const Operator& now = *operator_;
  std::set<uint32_t> layers;
  bool trains = false;
  for (const ParameterUse& use : now.uses) {
    layers.insert(model_.parameters[use.parameter].layer);
    trains = trains || use.argument.requires_grad();
  }
  if (!output.defined()) {
    for (const uint32_t layer : layers) {
      step_->of(layer).why_not = fmt::format("{} does not return a tensor", now.name);
    }
    return;
  }
  // Does anything of the batch go in?
  bool data = operators::draws_numbers(now.name);
  const bool multiplies = operators::is_product(now.name) || operators::takes_weight(now.name, 2);
  std::vector<uint32_t> made_of;
  for (const ParameterUse& use : now.uses) made_of.push_back(use.parameter);
  for (const Operator::Input& input : now.inputs) {
    if (input.track != nullptr && input.track->constant) {
      // A batch may be made of constants; the other factor of a weight is an input.
      data = data || (input.track->made_of.empty() && multiplies && input.position == 0);
      made_of.insert(made_of.end(), input.track->made_of.begin(), input.track->made_of.end());
    } else if (!input.number || input.track != nullptr) {
      data = true;
    }
  }
  const bool library =
      layers.size() == 1 && operators::is_library(model_.layers[*layers.begin()].type) && trains;
  if (!data && !library) {
    Track& constant = start_track(output);
    constant.constant = true;
    constant.made_of = std::move(made_of);
    return;
  }
  const bool continues =
      std::any_of(now.inputs.begin(), now.inputs.end(), [&](const Operator::Input& input) {
        return input.track != nullptr && input.track->exact &&
               layers.count(input.track->exact->layer) > 0;
      });
  const bool frozen = !layers.empty() && !trains && !continues;
  if (frozen) {
    for (const uint32_t layer : layers) step_->of(layer).frozen = true;
  }
  if (!output.is_floating_point() || !output.requires_grad()) {
    tracks_.erase(output.unsafeGetTensorImpl());
    return;
  }
  // Weights that the module makes of its parameters before it multiplies by them.
  for (const uint32_t parameter : made_of) layers.insert(model_.parameters[parameter].layer);
  for (const Operator::Input& input : now.inputs) {
    if (input.track == nullptr || input.track->descent.empty() || input.position == 0) continue;
    if (!operators::takes_weight(now.name, input.position)) continue;
    for (const OutputPtr& from : input.track->descent) {
      from->why_not = fmt::format("{} takes what follows from it for a weight", now.name);
    }
  }
  if (layers.empty() || frozen) {
    other_operator(output);
  } else if (layers.size() > 1) {
    for (const uint32_t layer : layers) {
      step_->of(layer).why_not =
          fmt::format("{} uses its parameters together with those of another layer", now.name);
    }
    (void)pass_descent(output, nullptr, false);
  } else if (operators::is_library(model_.layers[*layers.begin()].type)) {
    library_operator(*layers.begin(), output);
  } else {
    own_operator(*layers.begin(), made_of, output);
  }
}

// Results that are on their way through: but not out of a module into one that is not part of it.
ActivationWatch::Track* ActivationWatch::pass_descent(const at::Tensor& output,
                                                      const uint32_t* through, bool wanted) {
  std::vector<OutputPtr> descent;
  for (const Operator::Input& input : operator_->inputs) {
    if (input.track == nullptr) continue;
    for (const OutputPtr& from : input.track->descent) {
      if (through != nullptr && (*through == from->layer || !descends(*through, from->layer))) {
        continue;
      }
      if (std::find(descent.begin(), descent.end(), from) == descent.end()) descent.push_back(from);
    }
  }
  if (descent.empty() && !wanted) {
    tracks_.erase(output.unsafeGetTensorImpl());  // It may have been changed in place.
    return nullptr;
  }
  Track& started = start_track(output);
  started.descent = std::move(descent);
  return &started;
}

void ActivationWatch::library_operator(uint32_t layer, const at::Tensor& output) {
  const Operator& now = *operator_;
  for (const Operator::Input& input : now.inputs) {
    if (input.track != nullptr && input.track->exact) input.track->exact->used_as_is = true;
  }
  const std::string& type = model_.layers[layer].type;
  const ParameterUse* use = nullptr;
  for (const ParameterUse& each : now.uses) {
    const at::Tensor& weight = model_.parameters[each.parameter].tensor;
    if (!operators::makes_output(type, now.name, each, weight)) continue;
    if (use == nullptr || weight.dim() > 1) use = &each;
  }
  if (use == nullptr) {
    (void)pass_descent(output, nullptr, false);
    return;
  }
  // A bias added in place changes the output that was seen before; its gradient stays the same.
  OutputPtr made;
  const Track* before = find(output);
  if (before != nullptr && before->exact && before->exact->layer == layer) {
    made = before->exact;
    step_->measure(made.get(), output);
  } else {
    made = step_->add(layer, now.name, output);
    made->unit = operators::unit_dimension(now.name, *use, output);
  }
  pass_descent(output, &layer, true)->exact = made;
}

std::optional<int64_t> ActivationWatch::unit_of(const at::Tensor& output) const {
  for (const ParameterUse& use : operator_->uses) {
    if (const auto unit = operators::unit_dimension(operator_->name, use, output)) return unit;
  }
  for (const Operator::Input& input : operator_->inputs) {
    if (input.track == nullptr || !input.track->constant || input.track->made_of.empty()) continue;
    const ParameterUse use{input.track->made_of.front(), input.position, input.tensor};
    if (const auto unit = operators::unit_dimension(operator_->name, use, output)) return unit;
  }
  return std::nullopt;
}

void ActivationWatch::own_operator(uint32_t layer, const std::vector<uint32_t>& parameters,
                                   const at::Tensor& output) {
  const Operator& now = *operator_;
  LayerOutputs& state = step_->of(layer);
  std::string why_not;
  const auto used = [&](const ModuleCall& call) {
    return std::any_of(parameters.begin(), parameters.end(),
                       [&](uint32_t p) { return call.parameters.count(p) > 0; });
  };
  if (state.calls.empty() || used(state.calls.back())) state.calls.emplace_back();
  const uint64_t number = state.calls.size() - 1;
  ModuleCall& call = state.calls.back();
  call.parameters.insert(parameters.begin(), parameters.end());
  call.signature += now.name;
  for (const uint32_t p : parameters) call.signature += fmt::format(",{}", p);
  call.signature += ';';
  if (!operators::is_sum(now.name)) ++call.products;
  std::optional<int64_t> unit = unit_of(output);
  OutputPtr in_place;
  for (const Operator::Input& input : now.inputs) {
    if (input.track == nullptr) continue;
    const OutputPtr& exact = input.track->exact;
    for (const OutputPtr& from : input.track->descent) {
      if (from->layer != layer) continue;
      if (from->call == number) {
        from->set_inner();
      } else {
        why_not = fmt::format(
            "what it gives comes back to it ({}), and whether it left the module between cannot be "
            "told",
            now.name);
      }
    }
    if (!exact) continue;
    if (exact->layer != layer) exact->used_as_is = true;
    if (!input.tensor.is_same(output)) {
      if (operators::is_arithmetic(now.name) && exact->layer == layer && exact->unit &&
          input.tensor.sizes() == output.sizes()) {
        unit = exact->unit;
      }
      continue;
    }
    in_place = exact->layer == layer ? exact : nullptr;
    if (!in_place) exact->used_as_is = true;
  }
  OutputPtr made;
  if (in_place && operators::is_sum(now.name)) {
    made = in_place;  // Its gradient stays the same.
    made->inner = false;
    step_->measure(made.get(), output);
  } else {
    made = step_->add(layer, now.name, output);
    made->call = number;
    made->unit = unit;
    if (in_place) why_not = fmt::format("{} changes its result in place", now.name);
  }
  if (!why_not.empty()) made->why_not = std::move(why_not);
  Track* track = pass_descent(output, &layer, true);
  track->exact = made;
  track->descent.push_back(made);
}

// An operator without parameters.
void ActivationWatch::other_operator(const at::Tensor& output) {
  const Operator& now = *operator_;
  const bool arithmetic = operators::is_arithmetic(now.name);
  std::vector<OutputPtr> terms;
  bool alone = true;    // with other outputs of the same call, and numbers
  bool fitted = false;  // to something that is not computed from parameters, as in a loss
  bool in_place = false;
  for (const Operator::Input& input : now.inputs) {
    const OutputPtr exact = input.track == nullptr ? nullptr : input.track->exact;
    if (exact && !operators::is_library(model_.layers[exact->layer].type)) {
      terms.push_back(exact);
      in_place = in_place || input.tensor.is_same(output);
      if (operators::is_product(now.name) && input.position == 1 && input.tensor.dim() == 2) {
        exact->why_not = fmt::format(
            "{} multiplies by what it gives, and whether that is a weight cannot be told",
            now.name);
      }
    } else if (!input.number) {
      alone = false;
      fitted = operators::is_difference(now.name) && !input.tensor.requires_grad();
    }
  }
  if (terms.empty()) {
    (void)pass_descent(output, nullptr, false);
    return;
  }
  const OutputPtr& first = terms.front();
  if (operators::is_reshape(now.name) && !in_place) {
    Track* track = pass_descent(output, nullptr, true);
    track->exact = first;
    track->reshaped = true;
    return;
  }
  const bool one =
      std::all_of(terms.begin(), terms.end(), [&](const OutputPtr& term) { return term == first; });
  const bool together = std::all_of(terms.begin(), terms.end(), [&](const OutputPtr& term) {
    return term->layer == first->layer && term->call == first->call;
  });
  const bool square = one && terms.size() > 1;
  for (const OutputPtr& term : terms) {
    if (arithmetic && !fitted && !square) {
      term->arithmetic = now.name;
    } else {
      term->used_as_is = true;
    }
  }
  // Followed are sums of the results of one call, and one that is scaled.
  const bool sums = terms.size() == 1 || (operators::is_sum(now.name) && !one);
  if (!arithmetic || !alone || !together || in_place || !sums) {
    (void)pass_descent(output, nullptr, false);
    return;
  }
  const OutputPtr made = step_->add(first->layer, now.name, output);
  made->call = first->call;
  made->parents = terms;
  made->unit = first->unit;
  if (terms.size() == 1) {
    first->scaled = made;
  } else {
    for (const OutputPtr& term : terms) {
      if (term->unit != first->unit) made->unit.reset();
      term->set_inner();
    }
  }
  Track* track = pass_descent(output, nullptr, true);
  track->exact = made;
  track->descent.push_back(made);
}

void ActivationWatch::delivered(uint32_t parameter, GradientCapture::Use use) {
  if (!wanted() || !step_ || use == GradientCapture::Use::kIgnored) return;
  step_->delivered(model_.parameters[parameter].layer, parameter, use);
}

ActivationWatch::Result ActivationWatch::end(double loss_scale) {
  Result result;
  result.layers.resize(model_.layers.size());
  tracks_.clear();
  operator_->inputs.clear();
  operator_->uses.clear();
  operator_->idle = true;
  if (step_) step_->end(model_, loss_scale, &result.layers, &result.not_observed);
  return result;
}

}  // namespace tycho
