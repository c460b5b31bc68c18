#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "error_text.h"
#include "example_gradients_state.h"
#include "graph_search.h"
#include "torch_compat.h"

// What ExampleGradients does in backward passes, and with what they brought.
namespace tycho {
namespace {

using per_example::Contribution;
using per_example::Part;

// Tensors from which the graph is searched for the parameters before them, in one step.
constexpr int kMaxWalks = 16;
// Inputs and gradients that are kept until an experiment tells whose they are.
constexpr int64_t kMostKeptBytes = int64_t{256} << 20;

bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

}  // namespace

const per_example::Projection& ExampleGradients::Parameter::projection(
    const per_example::View& view, const at::Tensor& argument, uint64_t seed) {
  auto found = std::find_if(projections.begin(), projections.end(),
                            [&](const auto& entry) { return entry.first == view; });
  if (found == projections.end()) {
    projections.emplace_back(view, per_example::make_projection(argument.sizes(), argument, seed));
    found = std::prev(projections.end());
  }
  return found->second;
}

// In backward: the gradient of the output of a use has arrived.
void ExampleGradients::on_output_gradient(const std::shared_ptr<Applied>& applied,
                                          const at::Tensor& d) {
  Parameter& parameter = parameters_[applied->id];
  if (paused_) return;
  try {
    if (applied->fired) {
      passes_.repeated();
      parameter.unrecognised =
          "one forward pass is differentiated several times: add the losses, and call backward() "
          "once";
      return;
    }
    applied->fired = true;
    if (applied->why_no_rows.empty()) return contribute(applied.get(), d, &parameter);
    if (applied->input_changed()) {
      parameter.unrecognised =
          "an input of an operator that uses it was changed in place afterwards";
      return;
    }
    applied->output_gradient = d.detach();
    // The optimizer will write to parameters.
    auto& versions = applied->versions;
    versions.erase(
        std::remove_if(versions.begin(), versions.end(),
                       [&](const auto& entry) { return parameter_of_(entry.first).has_value(); }),
        versions.end());
    versions.emplace_back(applied->output_gradient, d._version());
    for (const auto& [tensor, version] : versions) {
      kept_bytes_ += static_cast<int64_t>(tensor.nbytes());
    }
    if (kept_bytes_ > kMostKeptBytes) parameter.unrecognised = applied->why_no_rows;
    parameter.open.push_back(applied);
  } catch (const std::exception& error) {
    parameter.unrecognised = error_text(error);
  }
}

// Where the examples lie is known by now.
void ExampleGradients::contribute(Applied* applied, at::Tensor d, Parameter* parameter) {
  if (applied->input_changed()) {
    parameter->unrecognised =
        "an input of an operator that uses it was changed in place afterwards";
    return;
  }
  const per_example::Use& use = applied->use;
  const int64_t gradients = applied->batch.size * use.argument.numel();
  per_example::Wanted wanted;
  const per_example::Projection& projection =
      parameter->projection(applied->view, use.argument, steps_ * 1000003 + applied->id);
  wanted.projection = &projection;
  Part part{{}, applied->view, projection, is_half(d) || is_half(use.argument)};
  wanted.materialise = parameter->uses > 1 && gradients <= per_example::kMaxMaterialisedElements &&
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
    parameter->unrecognised = part.contribution.why_not;
    return;
  }
  if (parameter->uses < 2) {
    part.contribution.row_factor = part.contribution.column_factor = at::Tensor();
  }
  parameter->parts.push_back(std::move(part));
}

// The rows of `output` are mixed, or it is not known where they go.
void ExampleGradients::on_lost(const at::Tensor& output, const std::string& why) {
  if (!output.grad_fn()) return;
  compat::WeakNode node = output.grad_fn();
  output.register_hook([step = step_, node, why](const at::Tensor& d) {
    std::lock_guard lock(step->mutex);
    if (!step->active || !d.defined()) return;
    const WorkMeter::Stretch stretch(step->meter);
    try {
      const auto alive = node.lock();
      if (alive) {
        step->owner->mark_upstream(alive.get(), why);
      } else {
        step->owner->lose_rows(why);
      }
    } catch (const std::exception&) {
      step->owner->give_up("out of memory");  // An exception would end the user's backward pass.
    }
  });
}

void ExampleGradients::lose_rows(const std::string& why) {
  lacks_rows_ = true;
  if (!recorded_) give_up(why);
  if (why_no_rows_.empty()) why_no_rows_ = why;
}

void ExampleGradients::mark_upstream(torch::autograd::Node* node, const std::string& why) {
  if (paused_) return;
  lacks_rows_ = true;
  if (++walks_ > kMaxWalks) return lose_rows(why);
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
  if (pass_examples_ < 0) {
    pass_examples_ = tracker_.examples();
    place_sources();
  }
  Parameter& parameter = parameters_[id];
  if (!selected(id)) return;
  std::vector<std::shared_ptr<Recurrent>> recurrent;
  for (const auto& call : std::exchange(parameter.recurrent, {})) {
    if (call->why_no_rows.empty()) {
      contribute(call.get());
    } else {
      recurrent.push_back(call);
    }
  }
  auto parts = std::exchange(parameter.parts, {});
  auto open = std::exchange(parameter.open, {});
  std::string why_not = std::exchange(parameter.unrecognised, {});
  std::string why_no_rows = std::exchange(parameter.unsound, {});
  const int64_t uses = std::exchange(parameter.uses, 0);
  const int64_t decided = tracker_.examples();
  passes_.delivered(id, uses > 0, decided > 0 ? decided : likely_examples_,
                    use != GradientCapture::Use::kIgnored, use == GradientCapture::Use::kFirst);
  if (use == GradientCapture::Use::kIgnored) return;
  if (use == GradientCapture::Use::kFirst) {
    parameter.norms.clear();
    parameter.sizes.clear();
    parameter.open_checks.clear();
    parameter.why_not.clear();
    parameter.why_no_rows.clear();
    parameter.waiting.reset();
  }
  if (use == GradientCapture::Use::kUnknown) why_not = "its gradient could not be captured";
  if (!open.empty()) why_no_rows = open[0]->why_no_rows;
  if (!recurrent.empty()) why_no_rows = recurrent[0]->why_no_rows;
  // An experiment is made on the tape of a step with one pass.
  const bool single = recorded_ && use == GradientCapture::Use::kFirst && !several_passes_;
  if (why_not.empty() && !single) why_not = why_no_rows;
  if (!given_up_.empty()) why_not = given_up_;
  if (why_not.empty() && parts.empty() && open.empty() && recurrent.empty()) {
    why_not = uses == 0 ? "no operator was seen to use it; what runs inside custom functions or "
                          "without gradients is not seen"
                        : "no use of it received a gradient";
  }
  if (why_not.empty() && (!open.empty() || !recurrent.empty())) {
    parameter.why_no_rows = why_no_rows;
    parameter.waiting = Waiting{std::move(parts), std::move(open), std::move(recurrent),
                                delivered.detach().clone(), uses};
    return;
  }
  at::Tensor norm;
  if (why_not.empty()) {
    try {
      norm = joined(std::move(parts), delivered, &parameter, &why_not);
    } catch (const std::exception& error) {
      why_not = error_text(error);
    }
  }
  if (!why_not.empty()) {
    if (parameter.why_not.empty()) parameter.why_not = why_not;
    return;
  }
  if (!why_no_rows.empty()) parameter.why_no_rows = why_no_rows;
  parameter.sizes.push_back(norm.size(0));
  parameter.norms.push_back(std::move(norm));
}

at::Tensor ExampleGradients::joined(std::vector<Part> parts, const at::Tensor& delivered,
                                    Parameter* parameter, std::string* why_not) {
  per_example::Joined joined = per_example::join(std::move(parts), parameter->tensor, delivered);
  *why_not = joined.why_not;
  if (!why_not->empty()) return {};
  // On other devices the comparison would wait for the device: it is made after the step.
  if (!joined.difference.device().is_cpu()) {
    parameter->open_checks.emplace_back(joined.difference, joined.tolerance);
  } else {
    *why_not = per_example::does_not_add_up(joined.difference, joined.tolerance);
  }
  return joined.norm_sq;
}

void ExampleGradients::check_loss(const at::Tensor& loss) {
  if (!wanted_ || !loss.defined()) return;
  const rows::Layout layout = tracker_.layout(loss);
  if (layout.lost()) lose_rows("of the loss: " + layout.why);
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
  const std::string& no_rows = parameter.why_no_rows.empty() ? why_no_rows_ : parameter.why_no_rows;
  if (!no_rows.empty()) {
    // Said unless resolve() follows.
    why_not = no_rows;
    parameter.asks = backwards == 1 && !several_passes_ && batch_size == pass_examples_ &&
                     batch_size > 1 && !parameter.rows.empty();
    return;
  }
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
  observed->microbatch_sizes = std::move(parameter.sizes);
  observed->per_example_norm_sq = std::move(parameter.norms);
}

}  // namespace tycho
