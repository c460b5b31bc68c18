#include "example_gradients.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "error_text.h"
#include "graph_search.h"
#include "per_example/uses.h"
#include "torch_compat.h"

namespace tycho {
namespace {

using per_example::Batch;
using per_example::Contribution;
using per_example::Part;
using per_example::Projection;
using per_example::View;

// Tensors from which the graph is searched for the parameters before them, in one step.
constexpr int kMaxWalks = 16;

bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

}  // namespace

struct ExampleGradients::Applied {
  explicit Applied(const AppliedParameter& parameter)
      : id(parameter.parameter), view(parameter.argument) {}

  uint32_t id = 0;
  per_example::Use use;
  View view;
  std::string why_not;
  Batch batch;
  std::vector<std::pair<at::Tensor, uint32_t>> versions;
  /// Of a table: the shape of what was looked up, where it is added to the examples.
  std::vector<int64_t> looked_up;
  bool fired = false;
  size_t operand() const { return per_example::operand(use); }
};

struct ExampleGradients::Parameter {
  at::Tensor tensor;
  uint32_t layer = 0;
  int64_t uses = 0;          // in forward passes since its last gradient
  std::string unrecognised;  // why a use since its last gradient is not exact
  std::string unsound;       // why what lies behind it does not keep examples apart
  std::vector<Part> parts;   // of the current backward pass
  std::vector<std::pair<View, Projection>> projections;
  std::vector<at::Tensor> norms;
  std::vector<int64_t> sizes;
  std::vector<std::pair<at::Tensor, double>> open_checks;  // error over scale, and what it may be
  std::string why_not;                                     // of the step

  void forget_step() {
    uses = 0;
    unrecognised.clear();
    unsound.clear();
    parts.clear();
    projections.clear();
    norms.clear();
    sizes.clear();
    open_checks.clear();
    why_not.clear();
  }
};

ExampleGradients::ExampleGradients(const ModelInfo& model, int64_t batch_dim,
                                   std::vector<bool> selected_layers, ParameterOf parameter_of,
                                   std::function<bool(uint32_t)> overlaps_another, WorkMeter* hooks)
    : parameter_of_(std::move(parameter_of)),
      overlaps_another_(std::move(overlaps_another)),
      hooks_(hooks),
      selected_layers_(std::move(selected_layers)),
      batch_dim_(batch_dim),
      tracker_([this](const at::Tensor& tensor) { return parameter_of_(tensor).has_value(); },
               [this](const at::Tensor& output, const std::string& why) { on_lost(output, why); }) {
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

void ExampleGradients::start_step(bool wanted, int64_t expected) {
  end_step();
  wanted_ = wanted;
  step_ = std::make_shared<Step>();
  step_->active = true;
  step_->owner = this;
  step_->meter = hooks_;
  ++steps_;
  walks_ = 0;
  pass_ended_ = false;
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
  pending_lookups_.clear();
  lookups_.clear();
  tracker_.start_step(batch_dim_, 0);
  for (Parameter& parameter : parameters_) {
    parameter.parts.clear();
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
  pending_lookups_.clear();
  in_call_ = wanted_ && !paused_;
  if (!in_call_) return;
  if (pass_ended_ && !applied.empty()) {
    pass_ended_ = false;
    tracker_.next_pass();
  }
  tracker_.before(name, inputs);
  std::vector<at::Tensor> operands;
  for (const AppliedParameter& parameter : applied) {
    if (!selected(parameter.parameter)) continue;
    auto use = std::make_shared<Applied>(parameter);
    use->use = {name, std::vector<c10::IValue>(inputs.begin(), inputs.end()), parameter.position,
                parameter.argument};
    if (parameter.in_list) {
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
    use->why_not = layout.lost() ? layout.why
                                 : fmt::format(
                                       "{} combines it with something that has no dimension of the "
                                       "step's examples",
                                       use->use.name);
  }
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
      if (layout.lost()) why_not = layout.why;
      if (why_not.empty() && !layout.has_rows())
        why_not = fmt::format("the examples are not found in what {} returns", use->use.name);
    }
    if (!why_not.empty()) {
      parameter.unrecognised = why_not;
      continue;
    }
    watch(use, output);
  }
  pending_.clear();
  if (pending_lookups_.empty() || !output.defined() || !output.requires_grad()) return;
  const rows::Layout layout = tracker_.layout(output);
  LookedUp joined{c10::weak_intrusive_ptr<c10::TensorImpl>(output.getIntrusivePtr()), {}, {}};
  for (const LookedUp& lookup : pending_lookups_) {
    for (size_t i = 0; i < lookup.uses.size(); ++i) {
      if (pending_adds_ && layout.has_rows()) {
        auto use = std::make_shared<Applied>(*lookup.uses[i]);
        use->looked_up = lookup.shapes[i];
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
    if (builds_graph) {
      step->owner->parameters_[applied->id].unrecognised =
          "a gradient of a gradient is taken (a gradient penalty)";
      return;
    }
    step->owner->on_output_gradient(applied.get(), d);
  });
}

// In backward: the gradient of the output of a use has arrived.
void ExampleGradients::on_output_gradient(Applied* applied, const at::Tensor& d) {
  Parameter& parameter = parameters_[applied->id];
  if (paused_) return;
  try {
    if (applied->fired) {
      parameter.unrecognised =
          "one forward pass is differentiated several times: add the losses, and call backward() "
          "once";
      return;
    }
    applied->fired = true;
    for (const auto& [tensor, version] : applied->versions) {
      if (tensor._version() == version) continue;
      parameter.unrecognised =
          "an input of an operator that uses it was changed in place afterwards";
      return;
    }
    const per_example::Use& use = applied->use;
    const int64_t gradients = applied->batch.size * use.argument.numel();
    per_example::Wanted wanted;
    auto projection = std::find_if(parameter.projections.begin(), parameter.projections.end(),
                                   [&](const auto& entry) { return entry.first == applied->view; });
    if (projection == parameter.projections.end()) {
      parameter.projections.emplace_back(
          applied->view, per_example::make_projection(use.argument.sizes(), use.argument,
                                                      steps_ * 1000003 + applied->id));
      projection = std::prev(parameter.projections.end());
    }
    wanted.projection = &projection->second;
    Part part{{}, applied->view, projection->second, is_half(d) || is_half(use.argument)};
    wanted.materialise = parameter.uses > 1 && gradients <= per_example::kMaxMaterialisedElements &&
                         !per_example::has_factors(use);
    if (applied->looked_up.empty() || applied->looked_up == d.sizes().vec()) {
      part.contribution = per_example::contribution(use, d, applied->batch, wanted);
    } else {
      // Of what was looked up, which all examples share, and from there of the table.
      const at::Tensor shape = at::empty({}, d.options()).expand(applied->looked_up);
      const Contribution of_rows =
          per_example::broadcast(shape, {}, d, applied->batch, {/*materialise=*/true});
      part.contribution = of_rows;
      if (of_rows.why_not.empty()) {
        const at::Tensor indices = use.arguments[1].toTensor().reshape({1, -1});
        part.contribution = per_example::looked_up(
            use, indices.expand({applied->batch.size, indices.size(1)}),
            of_rows.per_example.reshape({applied->batch.size, indices.size(1), -1}), wanted);
      }
    }
    if (!part.contribution.why_not.empty()) {
      parameter.unrecognised = part.contribution.why_not;
      return;
    }
    if (parameter.uses < 2) {
      part.contribution.row_factor = part.contribution.column_factor = at::Tensor();
    }
    parameter.parts.push_back(std::move(part));
  } catch (const std::exception& error) {
    parameter.unrecognised = error_text(error);
  }
}

// The rows of `output` are mixed, or it is not known where they go.
void ExampleGradients::on_lost(const at::Tensor& output, const std::string& why) {
  if (!output.grad_fn()) return;
  compat::WeakNode node = output.grad_fn();
  output.register_hook([step = step_, node, why](const at::Tensor& d) {
    std::lock_guard lock(step->mutex);
    if (!step->active || !d.defined()) return;
    const WorkMeter::Stretch stretch(step->meter);
    const auto alive = node.lock();
    if (alive) {
      step->owner->mark_upstream(alive.get(), why);
    } else {
      step->owner->give_up(why);
    }
  });
}

void ExampleGradients::mark_upstream(torch::autograd::Node* node, const std::string& why) {
  if (paused_) return;
  if (++walks_ > kMaxWalks) return give_up(why);
  for (const at::Tensor& leaf : leaves_before(node)) {
    const auto found = by_impl_.find(leaf.unsafeGetTensorImpl());
    if (found != by_impl_.end()) parameters_[found->second].unsound = why;
  }
}

// In backward: all uses of the parameter in this pass have contributed.
void ExampleGradients::on_gradient(uint32_t id, const at::Tensor& delivered,
                                   GradientCapture::Use use) {
  if (!wanted_ || !step_) return;
  std::lock_guard lock(step_->mutex);
  if (!step_->active) return;
  pass_ended_ = true;
  Parameter& parameter = parameters_[id];
  if (!selected(id)) return;
  auto parts = std::exchange(parameter.parts, {});
  std::string why_not = std::exchange(parameter.unrecognised, {});
  const std::string unsound = std::exchange(parameter.unsound, {});
  const int64_t uses = std::exchange(parameter.uses, 0);
  if (use == GradientCapture::Use::kIgnored) return;
  if (use == GradientCapture::Use::kFirst) {
    parameter.norms.clear();
    parameter.sizes.clear();
    parameter.open_checks.clear();
    parameter.why_not.clear();
  }
  if (use == GradientCapture::Use::kUnknown) why_not = "its gradient could not be captured";
  if (why_not.empty()) why_not = unsound;
  if (!given_up_.empty()) why_not = given_up_;
  if (why_not.empty() && parts.empty()) {
    why_not = uses == 0 ? "no operator was seen to use it; what runs inside custom functions or "
                          "without gradients is not seen"
                        : "no use of it received a gradient";
  }
  at::Tensor norm;
  if (why_not.empty()) {
    try {
      per_example::Joined joined = per_example::join(std::move(parts), parameter.tensor, delivered);
      why_not = joined.why_not;
      norm = std::move(joined.norm_sq);
      // On other devices the comparison would wait for the device: it is made after the step.
      if (why_not.empty() && !joined.difference.device().is_cpu()) {
        parameter.open_checks.emplace_back(joined.difference, joined.tolerance);
      } else if (why_not.empty()) {
        why_not = per_example::does_not_add_up(joined.difference, joined.tolerance);
      }
    } catch (const std::exception& error) {
      why_not = error_text(error);
    }
  }
  if (!why_not.empty()) {
    if (parameter.why_not.empty()) parameter.why_not = why_not;
    return;
  }
  parameter.sizes.push_back(norm.size(0));
  parameter.norms.push_back(std::move(norm));
}

void ExampleGradients::check_loss(const at::Tensor& loss) {
  if (!wanted_ || !loss.defined()) return;
  const rows::Layout layout = tracker_.layout(loss);
  if (layout.lost()) give_up("of the loss: " + layout.why);
}

void ExampleGradients::finish(uint32_t id, int64_t backwards, int64_t batch_size,
                              ParameterObservation* observed) {
  if (!wanted_ || !selected(id) || backwards == 0) return;
  Parameter& parameter = parameters_[id];
  std::string& why_not = observed->why_not_per_example;
  why_not = parameter.why_not.empty() ? given_up_ : parameter.why_not;
  for (const auto& [relative, tolerance] : parameter.open_checks) {
    if (why_not.empty()) why_not = per_example::does_not_add_up(relative, tolerance);
  }
  if (!why_not.empty()) return;
  if (static_cast<int64_t>(parameter.norms.size()) != backwards) {
    why_not = "a backward pass was not observed";
    return;
  }
  int64_t examples = 0;
  for (const int64_t size : parameter.sizes) examples += size;
  if (batch_size > 0 && examples != batch_size) {
    why_not = fmt::format(
        "dimension {} of its inputs has {} entries, but the step is said to have {} examples: see "
        "batch_dim, and the number that is given to step()",
        batch_dim_, examples, batch_size);
    return;
  }
  observed->microbatch_sizes = parameter.sizes;
  observed->per_example_norm_sq = std::move(parameter.norms);
}

}  // namespace tycho
