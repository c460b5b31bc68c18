#include <algorithm>

#include "session/session_impl.h"

namespace tycho {
namespace {

// Between two readings of the delay in steps that are not observed: 10 us of 10 ms.
constexpr double kRunDelaySeconds = 0.01;

}  // namespace

Needs hooks_of(const Needs& needs) {
  Needs hooks = needs;
  // The sums over parameters have the squared norm of the gradient too.
  hooks.gradient_norms = needs.gradient_norms && !needs.parameter_sums;
  hooks.probe_loss = hooks.previous_weights = hooks.adam_state = hooks.convolutions = false;
  return hooks;
}

bool any_hook(const Needs& hooks) {
  return hooks.gradients || hooks.parameter_sums || hooks.gradient_norms ||
         hooks.microbatch_gradient_norms || hooks.per_example_gradient_norms || hooks.activations ||
         hooks.output_gradients || hooks.symmetries;
}

bool watches_operators(const Needs& hooks) {
  return hooks.per_example_gradient_norms || hooks.activations || hooks.output_gradients ||
         hooks.symmetries;
}

void Session::Impl::charge(size_t index, double seconds) {
  probes[index].seconds += seconds;
  own_seconds[index] += seconds;
}

double Session::Impl::undisturbed(double seconds, Clock::time_point now, bool read) {
  if (read || seconds_between(last_run_delay, now) > kRunDelaySeconds) {
    delay_outside += run_delay.take();
    last_run_delay = now;
  }
  const double delay = std::min(delay_outside, seconds);
  delay_outside -= delay;
  return seconds - delay;
}

Scheduler::Hooks Session::Impl::hooks_installed() const {
  if (tapes->recording()) return Scheduler::Hooks::kOperators;
  if (!hooked) return Scheduler::Hooks::kNone;
  return watches_operators(hooks_of(due_needs)) ? Scheduler::Hooks::kOperators
                                                : Scheduler::Hooks::kGradients;
}

void Session::Impl::share_cost(const std::vector<size_t>& observed_probes, double inside,
                               double disturbed) {
  double own = 0;
  for (const auto& [index, seconds] : own_seconds) own += seconds;
  size_t hooking = 0;
  size_t watching = 0;
  for (const size_t index : observed_probes) {
    const Needs hooks = hooks_of(probes[index].needs);
    hooking += any_hook(hooks);
    watching += watches_operators(hooks);
  }
  // Where in the call the core was lost is not known.
  const double running = inside > 0 ? 1 - std::min(disturbed / inside, 1.0) : 1;
  double of_operators = in_hooks.operators + scheduler.last_slowdown();
  double shared = std::max(inside - own, 0.0) + in_hooks.gradients;
  if (watching == 0) shared += std::exchange(of_operators, 0.0);
  for (const size_t index : observed_probes) {
    const Needs hooks = hooks_of(probes[index].needs);
    double part = 0;
    if (hooking == 0) part = shared / static_cast<double>(observed_probes.size());
    if (any_hook(hooks)) part = shared / static_cast<double>(hooking);
    if (watches_operators(hooks)) part += of_operators / static_cast<double>(watching);
    probes[index].seconds += part;
    scheduler.observed(index, (own_seconds[index] + part) * running);
  }
}

void Session::Impl::health(Clock::time_point now) {
  last_health = now;
  v1::Health message;
  message.set_step(step_number);
  for (ProbeEntry& entry : probes) {
    if (entry.observations == 0) continue;
    v1::ProbeCost* cost = message.add_cost();
    cost->set_probe(entry.name);
    cost->set_seconds(entry.seconds);
    cost->set_observations(entry.observations);
    entry.seconds = 0;
    entry.observations = 0;
  }
  trace->report_losses(&message);
  say_live();
  message.set_steps_seen(steps_seen);
  message.set_steps_observed(steps_observed);
  CostBooks::Rest rest;
  rest.slowdown = scheduler.slowdown_seconds();
  rest.slowdown_known = scheduler.slowdown_known();
  rest.writer_cpu = trace->writer_cpu_seconds() + (live ? live->cpu_seconds() : 0);
  books->report(rest, &message);
  trace->push(std::move(message));
}

}  // namespace tycho
