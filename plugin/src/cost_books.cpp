#include "cost_books.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace tycho {

CostBooks::CostBooks() : birth_(WorkMeter::Clock::now()), cpu_at_birth_(process_cpu_seconds()) {
  const int threads = at::get_num_threads();
  for (WorkMeter* meter : {&calls_, &gradient_hooks_, &operator_hooks_}) {
    meter->set_threads(threads);
  }
  construction_.emplace(this, true);
}

double CostBooks::constructed() {
  construction_.reset();
  return calls_.total().wall;
}

CostBooks::Call::Call(CostBooks* books, bool exact)
    : books_(books), stretch_(books->depth_++ == 0 ? &books->calls_ : nullptr, exact) {}

CostBooks::Hooks CostBooks::take_hooks() {
  (void)calls_.total();  // adapts its sample
  const Hooks now{gradient_hooks_.total().wall, operator_hooks_.total().wall};
  const Hooks result{now.gradients - taken_.gradients, now.operators - taken_.operators};
  taken_ = now;
  return result;
}

void CostBooks::report(const Rest& rest, v1::Health* health) {
  const double wall = std::chrono::duration<double>(WorkMeter::Clock::now() - birth_).count();
  const double cpu = std::max(process_cpu_seconds() - cpu_at_birth_, 0.0);
  // The user may have changed the number of threads since.
  const int threads = at::get_num_threads();
  WorkMeter::Reading calls = calls_.total();
  WorkMeter::Reading hooks = gradient_hooks_.total();
  const WorkMeter::Reading of_operators = operator_hooks_.total();
  hooks.wall += of_operators.wall;
  hooks.cpu += of_operators.cpu;
  hooks.stretches += of_operators.stretches;
  for (WorkMeter* meter : {&calls_, &gradient_hooks_, &operator_hooks_}) {
    meter->set_threads(threads);
  }
  // The clock of the process has counted what the writing thread did during calls and hooks.
  const double counted = threads > 1 && wall > 0 ? (calls.wall + hooks.wall) / wall : 0;
  const double writer = rest.writer_cpu * (1 - std::min(counted, 1.0));
  const double slowdown_cpu = hooks.wall > 0 ? rest.slowdown * hooks.cpu / hooks.wall : 0;
  health->set_training_seconds(wall);
  health->set_tycho_seconds(std::min(calls.wall + hooks.wall + rest.slowdown, wall));
  health->set_process_cpu_seconds(cpu);
  health->set_tycho_cpu_seconds(std::min(calls.cpu + hooks.cpu + slowdown_cpu + writer, cpu));
  health->set_hook_seconds(hooks.wall);
  health->set_slowdown_seconds(rest.slowdown);
  health->set_cost_is_lower_bound(hooks.stretches > 0 && !rest.slowdown_known);
}

}  // namespace tycho
