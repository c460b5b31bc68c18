#include <ATen/ATen.h>

#include <algorithm>

#include "error_text.h"
#include "example_gradients_state.h"

// What is left of a step until an experiment on its tape has told whose rows are whose.
namespace tycho {

void ExampleGradients::note_sources(c10::ArrayRef<const c10::IValue> inputs) {
  if (pass_examples_ >= 0) return;
  const auto note = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const tape::ValueId value = recorder_->number_of(tensor);
    if (value == tape::kNoValue || !recorder_->is_given(value)) return;
    if (tracker_.examples() == 0) {
      unplaced_.emplace_back(value, tensor);
      return;
    }
    if (sources_.count(value) == 0) sources_.emplace(value, tracker_.layout(tensor));
  };
  for (const c10::IValue& input : inputs) {
    if (input.isTensor()) note(input.toTensor());
    if (!input.isList()) continue;
    for (const c10::IValue& element : input.toListRef()) {
      if (element.isTensor()) note(element.toTensor());
    }
  }
}

void ExampleGradients::place_sources() {
  for (const auto& [value, tensor] : std::exchange(unplaced_, {})) {
    sources_.emplace(value, tracker_.layout(tensor));
  }
}

std::vector<tape::RowSource> ExampleGradients::sources() const {
  std::vector<tape::RowSource> sources;
  for (const auto& [value, layout] : sources_) {
    if (layout.has_rows()) sources.push_back({value, layout});
  }
  return sources;
}

bool ExampleGradients::asks() const {
  return std::any_of(parameters_.begin(), parameters_.end(),
                     [](const Parameter& parameter) { return parameter.asks; });
}

std::vector<tape::RowsWanted> ExampleGradients::wanted_rows() const {
  std::vector<tape::RowsWanted> wanted;
  for (const Parameter& parameter : parameters_) {
    if (!parameter.asks) continue;
    for (const RowsOfUse& rows : parameter.rows) wanted.push_back(rows.output);
  }
  return wanted;
}

namespace {

/// The layout of a place, all rows of which that have a gradient are some example's.
rows::Layout placed(const tape::RowExamples::Place& place, const at::Tensor& gradient) {
  if (!place.layout.has_rows() || !place.layout.labels.defined()) return place.layout;
  const at::Tensor nobodys = place.layout.labels.lt(0);
  if (!nobodys.any().item<bool>()) return place.layout;
  const at::Tensor rows = gradient.index_select(place.layout.dim, nobodys.nonzero().reshape({-1}));
  if (rows.ne(0).any().item<bool>()) {
    return rows::lost(place.layout.examples,
                      "rows that no example's data show in have a part in the gradient");
  }
  return rows::labelled(place.layout.dim, place.layout.examples, place.layout.labels.clamp_min(0));
}

}  // namespace

std::string ExampleGradients::resolved(Parameter* parameter, const tape::RowExamples& found,
                                       at::Tensor* norm) {
  for (const RowsOfUse& use : parameter->rows) {
    if (!use.layout.has_rows()) continue;
    const auto place = found.along(use.output.value, use.layout.dim);
    if (!place.layout.has_rows()) return place.layout.why;
    const at::Tensor seen = rows::labels(place.layout);
    if (seen.ge(0).logical_and(seen.ne(rows::labels(use.layout))).any().item<bool>()) {
      return "exchanging data of the examples shows in other rows than operators are known to put "
             "them";
    }
  }
  if (!parameter->waiting) {
    *norm = parameter->norms.at(0);
    return "";
  }
  Waiting waiting = std::move(*parameter->waiting);
  parameter->waiting.reset();
  parameter->uses = waiting.uses;
  for (const auto& call : waiting.recurrent) {
    call->batch.size = pass_examples_;
    call->batch.rows = found.place(call->value).layout;
    if (!call->batch.rows->has_rows()) return call->batch.rows->why;
    contribute(call.get());
  }
  for (const auto& applied : waiting.applied) {
    const auto place = found.place(applied->value);
    at::Tensor d = applied->output_gradient;
    if (place.flat && !per_example::flatten(&applied->use, &d)) {
      return "examples alternate along several dimensions of what uses it";
    }
    const rows::Layout layout = placed(place, d);
    if (!layout.has_rows()) return layout.why;
    applied->batch.size = pass_examples_;
    applied->batch.rows = layout;
    contribute(applied.get(), d, parameter);
  }
  std::string why_not = std::exchange(parameter->unrecognised, {});
  std::vector<per_example::Part> parts = std::exchange(parameter->parts, {});
  if (!why_not.empty()) return why_not;
  for (per_example::Part& part : waiting.parts) parts.push_back(std::move(part));
  if (parts.empty()) return "no use of it received a gradient";
  *norm = joined(std::move(parts), waiting.delivered, parameter, &why_not);
  return why_not;
}

bool ExampleGradients::resolve(uint32_t id, const tape::RowExamples& found,
                               ParameterObservation* observed) {
  Parameter& parameter = parameters_[id];
  if (!parameter.asks) return false;
  parameter.asks = false;
  const at::NoGradGuard no_grad;
  at::Tensor norm;
  std::string why_not = found.why_not();
  try {
    if (why_not.empty()) why_not = resolved(&parameter, found, &norm);
    for (const auto& [relative, tolerance] : parameter.open_checks) {
      if (why_not.empty()) why_not = per_example::does_not_add_up(relative, tolerance);
    }
  } catch (const std::exception& error) {
    why_not = error_text(error);
  }
  if (why_not.empty()) {
    observed->why_not_per_example.clear();
    observed->microbatch_sizes = {norm.size(0)};
    observed->per_example_norm_sq = {norm};
  } else {
    observed->why_not_per_example += "; by experiment: " + why_not;
  }
  return why_not.empty();
}

}  // namespace tycho
