#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "example_gradients_state.h"
#include "torch_compat.h"

namespace tycho {
ExampleGradients::ExampleGradients(const ModelInfo& model, int64_t batch_dim,
                                   std::vector<bool> selected_layers, ParameterOf parameter_of,
                                   std::function<bool(uint32_t)> overlaps_another, WorkMeter* hooks)
    : parameter_of_(std::move(parameter_of)),
      overlaps_another_(std::move(overlaps_another)),
      hooks_(hooks),
      selected_layers_(std::move(selected_layers)),
      batch_dim_(batch_dim),
      tracker_([this](const at::Tensor& tensor) { return parameter_of_(tensor).has_value(); },
               [this](const at::Tensor& output, const std::string& why) { on_lost(output, why); }),
      passes_(model.parameters.size()) {
  for (const ParameterInfo& info : model.parameters) {
    Parameter parameter;
    parameter.tensor = info.tensor;
    parameter.layer = info.layer;
    by_impl_[info.tensor.unsafeGetTensorImpl()] = info.id;
    parameters_.push_back(std::move(parameter));
  }
}

ExampleGradients::~ExampleGradients() { end_step(); }

bool ExampleGradients::selected(uint32_t id) const {
  return selected_layers_.empty() || selected_layers_[parameters_[id].layer];
}

void ExampleGradients::start_step(bool wanted, int64_t expected,
                                  const tape::TapeRecorder* recorder) {
  end_step();
  recorder_ = recorder;
  recorded_ = recorder != nullptr;
  lacks_rows_ = several_passes_ = false;
  why_no_rows_.clear();
  kept_bytes_ = 0;
  pass_examples_ = -1;
  wanted_ = wanted;
  step_ = std::make_shared<Step>();
  step_->active = true;
  step_->owner = this;
  step_->meter = hooks_;
  ++steps_;
  walks_ = 0;
  pass_ended_ = false;
  passes_.start_step();
  likely_examples_ = 0;
  given_up_.clear();
  for (Parameter& parameter : parameters_) parameter.forget_step();
  tracker_.start_step(batch_dim_, expected);
}

void ExampleGradients::end_step() {
  if (step_) {
    std::lock_guard lock(step_->mutex);
    step_->active = false;
  }
  in_call_ = false;
  pending_.clear();
  pending_recurrent_.reset();
  pending_lookups_.clear();
  lookups_.clear();
  recorder_ = nullptr;
  sources_.clear();
  unplaced_.clear();
  tracker_.start_step(batch_dim_, 0);
  for (Parameter& parameter : parameters_) {
    parameter.open.clear();
    parameter.waiting.reset();
    parameter.parts.clear();
    parameter.recurrent.clear();
    parameter.norms.clear();
    parameter.open_checks.clear();
  }
}

void ExampleGradients::give_up(const std::string& why) {
  if (given_up_.empty()) given_up_ = why;
}

void ExampleGradients::before(const char* name, c10::ArrayRef<const c10::IValue> inputs,
                              const std::vector<AppliedParameter>& applied) {
  pending_.clear();
  pending_recurrent_.reset();
  pending_lookups_.clear();
  in_call_ = wanted_ && !paused_;
  if (!in_call_) return;
  if (pass_ended_) {
    // What runs now may already put the next microbatch together.
    pass_ended_ = false;
    tracker_.next_pass();
    likely_examples_ = 0;
  }
  if (!applied.empty()) {
    several_passes_ = several_passes_ || pass_examples_ >= 0;
    passes_.forward();
  }
  tracker_.before(name, inputs);
  std::vector<at::Tensor> operands;
  std::string why_not_recurrent;
  const bool recurrent = begin_recurrent(name, inputs, applied, &why_not_recurrent);
  if (pending_recurrent_) operands.push_back(pending_recurrent_->call.input);
  for (const AppliedParameter& parameter : applied) {
    if (!selected(parameter.parameter)) continue;
    if (pending_recurrent_ && pending_recurrent_->holds(parameter.parameter)) continue;
    auto use = std::make_shared<Applied>(parameter);
    use->use = {name, std::vector<c10::IValue>(inputs.begin(), inputs.end()), parameter.position,
                parameter.argument};
    if (recurrent) {
      use->why_not = why_not_recurrent;
    } else if (parameter.in_list) {
      use->why_not = fmt::format(
          "{} takes a list of parameters, whose gradients of single examples are not known", name);
    } else if (per_example::recognised(use->use, &use->why_not)) {
      const size_t operand = use->operand();
      if (operand < inputs.size() && inputs[operand].isTensor()) {
        operands.push_back(inputs[operand].toTensor());
      }
    }
    pending_.push_back(std::move(use));
  }
  if (!operands.empty()) tracker_.decide(operands);
  if (operands.empty() && !pending_.empty() && likely_examples_ == 0 && !inputs.empty() &&
      inputs[0].isTensor()) {
    likely_examples_ = tracker_.likely_examples({inputs[0].toTensor()});
  }
  for (const auto& use : pending_) {
    if (!use->why_not.empty()) continue;
    const size_t position = use->operand();
    const bool tensor = position < inputs.size() && inputs[position].isTensor();
    const rows::Layout layout =
        tensor ? tracker_.layout(inputs[position].toTensor()) : rows::Layout();
    if (layout.has_rows()) continue;
    if (layout.none() && use->use.name == "aten::embedding") {
      use->looked_up = {0};  // Its shape is known afterwards.
      continue;
    }
    use->why_no_rows = layout.lost()
                           ? layout.why
                           : fmt::format(
                                 "{} combines it with something that has no dimension of the "
                                 "step's examples",
                                 use->use.name);
  }
  if (recorder_ != nullptr) note_sources(inputs);
  note_looked_up(name, inputs);
}

// What was looked up with positions may be given new dimensions, or be added to the examples.
// Anything else that is done with it is not followed.
void ExampleGradients::note_looked_up(const std::string& name,
                                      c10::ArrayRef<const c10::IValue> inputs) {
  if (lookups_.empty()) return;
  pending_adds_ = (name == "aten::add" || name == "aten::add_") && inputs.size() > 2 &&
                  inputs[2].isScalar() && inputs[2].toScalar().toDouble() == 1.0;
  pending_expands_ = name == "aten::expand" || name == "aten::expand_as";
  const bool reshapes = name == "aten::unsqueeze" || name == "aten::view" ||
                        name == "aten::reshape" || name == "aten::contiguous" ||
                        name == "aten::alias" || name == "aten::squeeze";
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].isTensor()) {
      if (!inputs[i].isTensorList()) continue;
      for (const at::Tensor& tensor : inputs[i].toTensorVector()) {
        const auto found = lookups_.find(tensor.unsafeGetTensorImpl());
        if (found == lookups_.end() || found->second.alive.expired()) continue;
        for (const auto& use : found->second.uses) {
          parameters_[use->id].unrecognised = name + " takes what was looked up in it";
        }
      }
      continue;
    }
    const auto found = lookups_.find(inputs[i].toTensor().unsafeGetTensorImpl());
    if (found == lookups_.end() || found->second.alive.expired()) continue;
    const bool added = pending_adds_ && i < 2 && !(name == "aten::add_" && i == 0);
    if (added || ((reshapes || pending_expands_) && i == 0)) {
      pending_lookups_.push_back(found->second);
      continue;
    }
    if (i == 1 && name.size() > 3 && name.substr(name.size() - 3) == "_as") continue;
    for (const auto& use : found->second.uses) {
      parameters_[use->id].unrecognised =
          fmt::format("{} takes what was looked up in it by position", name);
    }
  }
}

void ExampleGradients::after(const std::vector<c10::IValue>& results) {
  if (!in_call_) return;
  in_call_ = false;
  tracker_.after(results);
  if (pending_recurrent_) end_recurrent(results);
  const bool tensor = !results.empty() && results[0].isTensor();
  const at::Tensor output = tensor ? results[0].toTensor() : at::Tensor();
  // Nothing that has a gradient comes of set_data(), equal() or item().
  const bool any_tensor = std::any_of(
      results.begin(), results.end(),
      [](const c10::IValue& result) { return result.isTensor() || result.isTensorList(); });
  const auto several = std::count_if(results.begin(), results.end(), [](const c10::IValue& value) {
    return value.isTensor() && value.toTensor().defined() && value.toTensor().requires_grad();
  });
  for (const auto& use : pending_) {
    Parameter& parameter = parameters_[use->id];
    if (!tensor) {
      if (!any_tensor) continue;
      parameter.unrecognised = fmt::format("{} does not return a tensor", use->use.name);
      ++parameter.uses;
      continue;
    }
    // A view of a parameter is not a use of it; what is done with the view is.
    if (!output.defined() || !output.requires_grad() || parameter_of_(output)) continue;
    ++parameter.uses;
    std::string& why_not = use->why_not;
    if (why_not.empty() && several > 1)
      why_not = fmt::format("{} has several outputs", use->use.name);
    if (why_not.empty() && overlaps_another_(use->id))
      why_not = "it shares its memory with another parameter";
    if (why_not.empty() && !use->use.argument.is_non_overlapping_and_dense())
      why_not = "it is used through a view with gaps";
    if (why_not.empty() && !use->looked_up.empty()) {
      --parameter.uses;  // Counted where it is added.
      use->use.argument = use->use.argument.detach();
      lookups_.insert_or_assign(
          output.unsafeGetTensorImpl(),
          LookedUp{c10::weak_intrusive_ptr<c10::TensorImpl>(output.getIntrusivePtr()),
                   {use},
                   {output.sizes().vec()}});
      continue;
    }
    if (why_not.empty()) {
      const rows::Layout layout = tracker_.layout(output);
      use->batch.size = tracker_.examples();
      use->batch.rows = layout;
      std::string& why = use->why_no_rows;
      if (why.empty()) why = layout.why;
      if (why.empty() && !layout.has_rows()) {
        why = fmt::format("the examples are not found in what {} returns", use->use.name);
      }
      if (!why.empty()) lacks_rows_ = true;
      if (recorder_ != nullptr) use->value = recorder_->number_of(output);
      if (use->value == tape::kNoValue) why_not = why;
    }
    if (!why_not.empty()) {
      parameter.unrecognised = why_not;
      continue;
    }
    watch(use, output);
  }
  pending_.clear();
  if (pending_lookups_.empty() || !output.defined() || !output.requires_grad()) return;
  const tape::ValueId value = recorder_ == nullptr ? tape::kNoValue : recorder_->number_of(output);
  const rows::Layout layout = tracker_.layout(output);
  LookedUp joined{c10::weak_intrusive_ptr<c10::TensorImpl>(output.getIntrusivePtr()), {}, {}};
  for (const LookedUp& lookup : pending_lookups_) {
    for (size_t i = 0; i < lookup.uses.size(); ++i) {
      if (pending_adds_ && layout.has_rows()) {
        auto use = std::make_shared<Applied>(*lookup.uses[i]);
        use->looked_up = lookup.shapes[i];
        use->value = value;
        use->batch.size = tracker_.examples();
        use->batch.rows = layout;
        ++parameters_[use->id].uses;
        watch(use, output);
        continue;
      }
      joined.uses.push_back(lookup.uses[i]);
      joined.shapes.push_back(pending_adds_ || pending_expands_ ? lookup.shapes[i]
                                                                : output.sizes().vec());
    }
  }
  if (!joined.uses.empty()) lookups_.insert_or_assign(output.unsafeGetTensorImpl(), joined);
}

void ExampleGradients::watch(std::shared_ptr<Applied> applied, const at::Tensor& output) {
  for (c10::IValue& argument : applied->use.arguments) {
    if (!argument.isTensor() || !argument.toTensor().defined()) continue;
    // Detached, so that no part of the graph is kept alive; versions are shared with the original.
    const at::Tensor tensor = argument.toTensor().detach();
    if (!tensor.is_inference()) applied->versions.emplace_back(tensor, tensor._version());
    argument = tensor;
  }
  applied->use.argument = applied->use.argument.detach();
  if (applied->value != tape::kNoValue) {
    const int64_t features =
        applied->looked_up.empty() ? per_example::output_features(applied->use, output) : 0;
    parameters_[applied->id].rows.push_back(
        {{applied->value, features},
         applied->why_no_rows.empty() ? *applied->batch.rows : rows::Layout()});
  }
  // BatchNorm itself updates its running statistics, which it does not use while it trains.
  if ((applied->use.name == "aten::batch_norm" || applied->use.name == "aten::instance_norm") &&
      applied->use.arguments[5].toBool()) {
    auto& versions = applied->versions;
    versions.erase(std::remove_if(versions.begin(), versions.end(),
                                  [](const auto& entry) { return entry.first.dim() == 1; }),
                   versions.end());
  }
  output.register_hook([step = step_, applied](const at::Tensor& d) {
    std::lock_guard lock(step->mutex);
    if (!step->active || !d.defined()) return;
    const WorkMeter::Stretch stretch(step->meter);
    const bool builds_graph = at::GradMode::is_enabled();
    at::NoGradGuard no_grad;
    try {
      if (builds_graph) {
        step->owner->parameters_[applied->id].unrecognised =
            "a gradient of a gradient is taken (a gradient penalty)";
        return;
      }
      step->owner->on_output_gradient(applied, d);
    } catch (const std::exception&) {
      step->owner->give_up("out of memory");  // An exception would end the user's backward pass.
    }
  });
}

}  // namespace tycho
