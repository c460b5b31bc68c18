#include <ATen/record_function.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "parameter_sums.h"
#include "session/session_impl.h"
#include "tensor_sums.h"

namespace tycho {
namespace {

constexpr uint64_t kFaultsUntilDisabled = 3;
// Experiments in a row that established nothing, after which none is made.
constexpr int kRowFailures = 3;
constexpr size_t kPendingSteps = 64;
// Observed steps whose gradients nobody changed, after which they are not copied any more.
constexpr int64_t kUnchangedUntilTrusted = 3;
constexpr int64_t kNeverTrusted = std::numeric_limits<int64_t>::min();

bool is_zero(const at::Tensor& tensor) { return squared_norm(tensor).item<double>() == 0; }

}  // namespace

void Session::Impl::note_changed_weights() {
  const std::vector<uint32_t> changed = snapshot.changed();
  if (changed.empty()) return;
  const std::string others =
      changed.size() > 1 ? fmt::format(" and {} more", changed.size() - 1) : std::string();
  notice("weights_changed_between_steps",
         fmt::format("the weights of {}{} were changed after Session::step and before the next "
                     "backward pass: this change is not part of a recorded update. Loading, "
                     "averaging and clamping weights do that; so does an optimizer.step() after "
                     "Session::step instead of before it",
                     facts.info.parameters[changed[0]].name, others));
}

void Session::Impl::note_settings() {
  const std::string used = settings_watch->take();
  if (used == written_settings && settings.group_size() > 0) return;
  written_settings = used;
  settings = settings_of(used, optimizers, facts.ids);
  settings.set_step(step_number);
  trace->push(settings);
}

void Session::Impl::observe(StepView* view, const at::Tensor* loss, const Needs& next_needs) {
  StepObservation seen;
  if (hooked) {
    seen = observer->uninstall(view->batch_size > 0 ? view->batch_size : 0);
  } else {
    seen.parameters.resize(facts.info.parameters.size());
    seen.fingerprints.resize(facts.info.parameters.size());
    seen.layers.resize(facts.info.layers.size());
  }
  note_settings();
  note_changed_weights();
  if (hooked) check_gradients(seen);
  bool refreshed = false;
  for (const ParameterInfo& parameter : facts.info.parameters) {
    ParameterObservation& observation = seen.parameters[parameter.id];
    if (snapshot.valid()) observation.previous_weight = snapshot.of(parameter.id);
    observation.update_known = observation.previous_weight.defined();
    if (due_needs.adam_state) read_adam_state(optimizers, parameter.tensor, &observation);
  }
  const bool snapshot_next = next_needs.previous_weights || next_needs.parameter_sums;
  if (due_needs.parameter_sums) {
    refreshed = snapshot_next && snapshot.valid() && !due_needs.previous_weights;
    view->parameter_sums = sum_parameters(&seen, refreshed);
  }
  TapeLosses::Step taped;
  taped.loss = loss == nullptr ? at::Tensor() : *loss;
  taped.value = view->loss_value;
  taped.batch_size = view->batch_size;
  taped.parameters = &seen.parameters;
  end_tape(&taped, &seen);
  for (const ObserverNotice& n : seen.notices) event(n.kind, n.code, n.message, n.scope, n.entity);
  view->model = &facts.info;
  view->optimizer = &settings;
  view->parameters = &seen.parameters;
  view->layers = &seen.layers;
  view->symmetries = &seen.symmetries;
  view->convolutions = &observer->convolutions();
  view->seed = options.seed();

  Pending step;
  step.step = view->step;
  step.time_ns = wall_clock_ns();
  step.transfer = std::make_unique<StepTransfer>();
  try {
    run_probes(view, &step);
  } catch (...) {
    (void)losses->restore();
    throw;
  }
  losses->close();
  for (const ObserverNotice& n : losses->take_notices()) {
    event(n.kind, n.code, n.message, n.scope, n.entity);
  }
  step.transfer->start();
  pending.push_back(std::move(step));
  if (!refreshed) snapshot.invalidate();
  if (seen.structure) {
    structure_known = true;
    std::string now = seen.structure->SerializeAsString();
    if (now != written_structure) {
      written_structure = std::move(now);
      trace->push(std::move(*seen.structure));
    }
  }
}

void Session::Impl::end_tape(TapeLosses::Step* taped, StepObservation* seen) {
  const bool asks = hooked && observer->asks_for_rows();
  bool looked = false;
  bool established = false;
  double seconds = 0;
  if (asks) {
    taped->look = [&](const tape::LossTape& tape, const std::vector<at::Tensor>& parameters,
                      int64_t memory) {
      const auto begin = Clock::now();
      looked = true;
      established = observer->establish_rows(tape, parameters, memory, seen);
      seconds = seconds_between(begin, Clock::now());
    };
  }
  const bool refused = tapes->refused();
  tapes->end_step(*taped);
  if (tapes->refused() && !refused) check_losses();
  if (!hooked || !due_needs.per_example_gradient_norms) return;
  if (asks && !looked) observer->forget_rows();
  if (looked) row_failures = established ? 0 : row_failures + 1;
  tapes->want_rows(observer->lacks_rows() && row_failures < kRowFailures);
  // The experiment is paid by those that need it.
  size_t payers = 0;
  for (const size_t index : due) payers += probes[index].needs.per_example_gradient_norms;
  for (const size_t index : due) {
    if (payers > 0 && probes[index].needs.per_example_gradient_norms) {
      charge(index, seconds / static_cast<double>(payers));
    }
  }
}

void Session::Impl::run_probes(StepView* view, Pending* step) {
  open_losses(view);
  for (const size_t index : due) {
    if (probes[index].disabled) continue;
    const auto begin = Clock::now();
    guarded(index, [&] {
      Probe::Finish finish = probes[index].probe->observe(*view, *step->transfer);
      if (finish) {
        step->finishes.emplace_back(index, std::move(finish));
      } else {
        scheduler.recorded(index, false);
      }
    });
    losses->settle(view);
    charge(index, seconds_between(begin, Clock::now()));
  }
}

at::Tensor Session::Impl::sum_parameters(StepObservation* seen, bool refresh) {
  std::vector<SumsInput> inputs;
  inputs.reserve(facts.info.parameters.size());
  bool copied = false;
  bool changed = false;
  bool optimizer_saw_others = false;
  for (const ParameterInfo& parameter : facts.info.parameters) {
    ParameterObservation& observation = seen->parameters[parameter.id];
    const at::Tensor& fingerprint = seen->fingerprints[parameter.id];
    const at::Tensor grad = parameter.tensor.grad();
    if (observation.gradient.defined() &&
        observation.gradient.sizes() != parameter.tensor.sizes()) {
      observation.gradient = at::Tensor();  // Its data were replaced after backward.
    }
    if (fingerprint.defined()) {
      observation.gradient = grad;
    } else if (unchanged_steps >= 0 && unchanged_steps < kUnchangedUntilTrusted &&
               observation.gradient.defined() && observation.gradient.device().is_cpu() &&
               observation.gradient.layout() == at::kStrided) {
      copied = true;
      if (!grad.defined() || grad.layout() != at::kStrided ||
          !at::equal(grad, observation.gradient)) {
        changed = true;
        // Gradients that were set to zero since have been used, and say nothing.
        optimizer_saw_others =
            optimizer_saw_others ||
            (grad.defined() && (grad.layout() != at::kStrided || grad.ne(0).any().item<bool>()));
      }
    }
    inputs.push_back({parameter.tensor.detach(), observation.gradient, observation.previous_weight,
                      fingerprint});
  }
  ParameterSums result = parameter_sums(inputs, refresh);
  for (const size_t id : result.changed) {
    changed = true;
    seen->parameters[id].gradient = at::Tensor();
    at::Tensor& norm_sq = seen->parameters[id].gradient_norm_sq;
    if (norm_sq.defined() && norm_sq.device().is_cpu() && !std::isfinite(norm_sq.item<double>())) {
      event(v1::Event::NON_FINITE, "non_finite_gradient",
            "NaN or infinity in the gradient of " + facts.info.parameters[id].name,
            v1::SCOPE_PARAMETER, static_cast<uint32_t>(id));
    }
    norm_sq = at::Tensor();  // Of what the optimizer has not seen.
    seen->parameters[id].why_not_per_example = "it was changed between backward and the optimizer";
    event(v1::Event::NOT_OBSERVED, "gradient_changed_before_step",
          fmt::format("the gradient of {} was changed between backward and the optimizer, for "
                      "the first time after {} steps: this step has no inner products with it, "
                      "and gradients are copied from now on",
                      facts.info.parameters[id].name, unchanged_steps),
          v1::SCOPE_PARAMETER, static_cast<uint32_t>(id));
  }
  if (optimizer_saw_others) {
    event(v1::Event::METHOD, "gradients_changed",
          "gradients are changed between backward and the optimizer (clipped?): statistics "
          "describe the gradients that backward delivered",
          v1::SCOPE_RUN, 0);
  }
  if (changed) {
    unchanged_steps = kNeverTrusted;
  } else if (copied && unchanged_steps >= 0) {
    ++unchanged_steps;
  }
  observer->trust_gradients(unchanged_steps >= kUnchangedUntilTrusted);
  return result.sums;
}

void Session::Impl::open_losses(StepView* view) {
  try {
    losses->open(due_needs, *optimizers.front(), view);
    if (due_needs.probe_loss && view->surface != nullptr) {
      view->probe_loss = view->surface->value();
    }
  } catch (const LossError& error) {
    view->surface = nullptr;
    losses->suspend(error);
  }
}

void Session::Impl::check_gradients(const StepObservation& seen) {
  bool delivered = false;
  std::vector<const ParameterInfo*> there;
  for (const ParameterInfo& parameter : facts.info.parameters) {
    const ParameterObservation& observation = seen.parameters[parameter.id];
    if (!observation.gradient.defined() && !observation.gradient_norm_sq.defined()) continue;
    delivered = true;
    if (parameter.tensor.grad().defined()) there.push_back(&parameter);
  }
  bool cleared = delivered && there.empty();
  // A look at a few small ones is cheap, and the first that is not zero decides; some may have
  // been zeroed on purpose. On other devices it would wait for the device.
  constexpr size_t kLooks = 6;
  const size_t looks = std::min(kLooks, there.size());
  const auto smaller = [](const ParameterInfo* x, const ParameterInfo* y) {
    return x->tensor.numel() < y->tensor.numel();
  };
  std::partial_sort(there.begin(), there.begin() + static_cast<std::ptrdiff_t>(looks), there.end(),
                    smaller);
  for (size_t i = 0; i < looks; ++i) {
    const at::Tensor& grad = there[i]->tensor.grad();
    if (!grad.device().is_cpu() || grad.layout() != at::kStrided) continue;
    if (!is_zero(grad)) {
      cleared = false;
      break;
    }
    const ParameterObservation& observation = seen.parameters[there[i]->id];
    cleared = cleared ||
              (observation.gradient.defined() ? !is_zero(observation.gradient)
                                              : observation.gradient_norm_sq.item<double>() > 0);
  }
  if (!cleared) return;
  notice("gradients_cleared_before_step",
         "gradients were cleared before Session::step; call zero_grad() after it or before the "
         "forward pass");
}

void Session::Impl::harvest(bool wait) {
  while (!pending.empty()) {
    Pending& step = pending.front();
    if (!step.transfer->ready()) {
      if (!wait && pending.size() <= kPendingSteps) return;
      step.transfer->wait();
    }
    for (auto& finishing : step.finishes) {
      const size_t index = finishing.first;
      const Probe::Finish& finish = finishing.second;
      const auto begin = Clock::now();
      guarded(index, [&] {
        RecordBuilder recorder(probes[index].ids, say, step.step);
        finish(*step.transfer, recorder);
        v1::Record record = recorder.take();
        const bool anything = record.column_size() > 0;
        if (anything) trace->push(std::move(record), probes[index].name, step.time_ns);
        scheduler.recorded(index, anything);
      });
      ++probes[index].observations;
      charge(index, seconds_between(begin, Clock::now()));
    }
    end_live_step(step.step);
    pending.pop_front();
  }
}

void Session::Impl::fault(ProbeEntry* entry, const std::string& what) {
  event(v1::Event::FAULT, "probe_fault_" + entry->name,
        fmt::format("probe \"{}\" failed: {}", entry->name, what), v1::SCOPE_RUN, 0);
  if (++entry->faults < kFaultsUntilDisabled || entry->disabled) return;
  entry->disabled = true;
  scheduler.disable(static_cast<size_t>(entry - probes.data()));
  event(v1::Event::FAULT, "probe_disabled_" + entry->name,
        fmt::format("probe \"{}\" failed {} times and is disabled", entry->name, entry->faults),
        v1::SCOPE_RUN, 0);
}

void Session::Impl::event(v1::Event::Kind kind, const std::string& code, const std::string& message,
                          v1::Scope scope, uint32_t entity) {
  trace->event(step_number, kind, code, message, scope, entity);
}

void Session::Impl::notice(const std::string& code, const std::string& message) {
  event(v1::Event::NOTICE, code, message, v1::SCOPE_RUN, 0);
}

}  // namespace tycho
