#include "src/engine/health_totals.h"

namespace tycho::analyzer {

void HealthTotals::apply(const v1::Health& message) {
  for (const v1::ProbeCost& cost : message.cost()) {
    v1::ProbeCost& total = probe_cost_[cost.probe()];
    total.set_probe(cost.probe());
    total.set_seconds(total.seconds() + cost.seconds());
    total.set_observations(total.observations() + cost.observations());
  }
  session_ = message;
  total_.clear_cost();
  for (const auto& [name, cost] : probe_cost_) *total_.add_cost() = cost;
  total_.set_step(message.step());
  if (!message.last_write_failure().empty()) {
    total_.set_last_write_failure(message.last_write_failure());
  }
  add_up();
}

void HealthTotals::end_session() {
  add_up();
  past_sessions_ = total_;
  session_.Clear();
}

void HealthTotals::add_up() {
  const v1::Health& past = past_sessions_;
  const v1::Health& now = session_;
  total_.set_messages_written(past.messages_written() + now.messages_written());
  total_.set_messages_dropped(past.messages_dropped() + now.messages_dropped());
  total_.set_bytes_written(past.bytes_written() + now.bytes_written());
  total_.set_write_failures(past.write_failures() + now.write_failures());
  total_.set_steps_seen(past.steps_seen() + now.steps_seen());
  total_.set_steps_observed(past.steps_observed() + now.steps_observed());
  total_.set_training_seconds(past.training_seconds() + now.training_seconds());
  total_.set_tycho_seconds(past.tycho_seconds() + now.tycho_seconds());
  total_.set_process_cpu_seconds(past.process_cpu_seconds() + now.process_cpu_seconds());
  total_.set_tycho_cpu_seconds(past.tycho_cpu_seconds() + now.tycho_cpu_seconds());
  total_.set_hook_seconds(past.hook_seconds() + now.hook_seconds());
  total_.set_slowdown_seconds(past.slowdown_seconds() + now.slowdown_seconds());
  total_.set_cost_is_lower_bound(past.cost_is_lower_bound() || now.cost_is_lower_bound());
}

}  // namespace tycho::analyzer
