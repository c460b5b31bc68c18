#include <ATen/ATen.h>
#include <fmt/format.h>

#include "error_text.h"
#include "example_gradients_state.h"

// Uses of the weights of recurrent layers: what they contribute follows from the gradients of
// several outputs at once, which are there when the gradient of the first weight is.
namespace tycho {

bool ExampleGradients::begin_recurrent(const std::string& name,
                                       c10::ArrayRef<const c10::IValue> inputs,
                                       const std::vector<AppliedParameter>& applied,
                                       std::string* why_not) {
  if (applied.empty()) return false;
  std::optional<per_example::Recurrence> call = per_example::recurrence(name, inputs, why_not);
  if (!call) return false;
  if (!why_not->empty()) return true;
  auto recurrent = std::make_shared<Recurrent>();
  for (const AppliedParameter& parameter : applied) {
    if (!selected(parameter.parameter)) continue;
    const bool whole = parameter.in_list == call->in_list;
    const auto index = call->weight_at(parameter.position, parameter.argument);
    if (!whole || !index || recurrent->holds(parameter.parameter)) {
      *why_not = fmt::format("{} takes it in a way that is not known", name);
      return true;
    }
    recurrent->weights.push_back(
        {parameter.parameter, *index, per_example::View(parameter.argument)});
  }
  if (recurrent->weights.empty()) return true;
  recurrent->call = std::move(*call);
  recurrent->name = name;
  pending_recurrent_ = std::move(recurrent);
  return true;
}

void ExampleGradients::end_recurrent(const std::vector<c10::IValue>& results) {
  const std::shared_ptr<Recurrent> use = std::exchange(pending_recurrent_, nullptr);
  std::vector<at::Tensor> outputs;
  for (const c10::IValue& result : results) {
    if (result.isTensor()) outputs.push_back(result.toTensor());
  }
  const bool trains = std::any_of(outputs.begin(), outputs.end(), [](const at::Tensor& output) {
    return output.defined() && output.requires_grad();
  });
  if (!trains || outputs.size() > use->output_gradients.size()) return;
  const rows::Layout layout = tracker_.layout(outputs[0]);
  use->batch.size = tracker_.examples();
  use->batch.rows = layout;
  std::string& why = use->why_no_rows;
  why = layout.why;
  if (!layout.lost() && !layout.has_rows()) {
    why = fmt::format("the examples are not found in what {} returns", use->name);
  }
  if (!why.empty()) lacks_rows_ = true;
  if (recorder_ != nullptr) use->value = recorder_->number_of(outputs[0]);
  const std::string why_not = use->value == tape::kNoValue ? why : std::string();
  for (const Recurrent::Weight& weight : use->weights) {
    Parameter& parameter = parameters_[weight.id];
    ++parameter.uses;
    std::string& said = parameter.unrecognised;
    if (!why_not.empty()) said = why_not;
    if (overlaps_another_(weight.id)) said = "it shares its memory with another parameter";
    if (!use->call.weights[weight.index].is_non_overlapping_and_dense()) {
      said = "it is used through a view with gaps";
    }
    parameter.recurrent.push_back(use);
    if (use->value == tape::kNoValue) continue;
    parameter.rows.push_back({{use->value, 1}, why.empty() ? layout : rows::Layout()});
  }
  if (!why_not.empty()) return;
  // Detached, so that no part of the graph is kept alive; versions are shared with the original.
  const auto keep = [&](at::Tensor* tensor) {
    if (!tensor->defined()) return;
    *tensor = tensor->detach();
    if (!tensor->is_inference()) use->versions.emplace_back(*tensor, tensor->_version());
  };
  per_example::Recurrence& call = use->call;
  for (at::Tensor* tensor : {&call.input, &call.h, &call.c}) keep(tensor);
  for (at::Tensor& weight : call.weights) weight = weight.detach();
  // Where one kernel makes both, each has a gradient of its own.
  call.h_is_made_of_c = call.single && outputs.size() == 2 && outputs[0].defined() &&
                        outputs[1].defined() && outputs[0].grad_fn() != outputs[1].grad_fn();
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].defined() || !outputs[i].requires_grad()) continue;
    outputs[i].register_hook([step = step_, use, i](const at::Tensor& d) {
      std::lock_guard lock(step->mutex);
      if (!step->active || !d.defined()) return;
      const WorkMeter::Stretch stretch(step->meter);
      ExampleGradients& owner = *step->owner;
      if (owner.paused_) return;
      const char* refused = nullptr;
      if (at::GradMode::is_enabled()) {
        refused = "a gradient of a gradient is taken (a gradient penalty)";
      } else if (use->output_gradients[i].defined() || use->contributed) {
        owner.passes_.repeated();
        refused =
            "one forward pass is differentiated several times: add the losses, and call backward() "
            "once";
      }
      try {
        for (const Recurrent::Weight& weight : use->weights) {
          if (refused != nullptr) owner.parameters_[weight.id].unrecognised = refused;
        }
        use->output_gradients[i] = d.detach();
      } catch (const std::exception&) {
        owner.give_up("out of memory");  // An exception would end the user's backward pass.
      }
    });
  }
}

void ExampleGradients::contribute(Recurrent* use) {
  if (use->contributed) return;
  use->contributed = true;
  const auto& given = use->output_gradients;
  const bool arrived =
      std::any_of(given.begin(), given.end(), [](const at::Tensor& d) { return d.defined(); });
  if (!arrived) return;
  std::string why_not;
  try {
    for (const auto& [tensor, version] : use->versions) {
      if (tensor._version() == version) continue;
      why_not = "an input of an operator that uses it was changed in place afterwards";
    }
    const at::NoGradGuard no_grad;
    std::vector<per_example::Wanted> wanted(use->call.weights.size());
    for (const Recurrent::Weight& weight : use->weights) {
      Parameter& parameter = parameters_[weight.id];
      const at::Tensor& argument = use->call.weights[weight.index];
      wanted[weight.index].projection =
          &parameter.projection(weight.view, argument, steps_ * 1000003 + weight.id);
      wanted[weight.index].materialise =
          parameter.uses > 1 && argument.dim() < 2 &&
          use->batch.size * argument.numel() <= per_example::kMaxMaterialisedElements;
    }
    std::vector<per_example::Contribution> found;
    if (why_not.empty()) {
      found = per_example::contributions(use->call, given, use->batch, wanted);
    }
    for (const Recurrent::Weight& weight : use->weights) {
      if (!why_not.empty()) break;
      Parameter& parameter = parameters_[weight.id];
      per_example::Contribution& own = found[weight.index];
      why_not = own.why_not;
      if (parameter.uses < 2) own.row_factor = own.column_factor = at::Tensor();
      const auto type = use->call.input.scalar_type();
      parameter.parts.push_back({std::move(own), weight.view, *wanted[weight.index].projection,
                                 type == at::kHalf || type == at::kBFloat16});
    }
  } catch (const std::exception& error) {
    why_not = error_text(error);
  }
  use->output_gradients = {};
  if (why_not.empty()) return;
  for (const Recurrent::Weight& weight : use->weights) {
    parameters_[weight.id].unrecognised = why_not;
  }
}

}  // namespace tycho
