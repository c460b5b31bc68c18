#include <ATen/record_function.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <limits>

#include "options.h"
#include "session/session_impl.h"

#ifndef NDEBUG
#error "record_function.h has another layout without NDEBUG than in a release LibTorch"
#endif

namespace tycho {
namespace {

constexpr double kHealthSeconds = 2;

}  // namespace

std::atomic<uint64_t>& fork_generation() {
  static std::atomic<uint64_t> generation{0};
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { fork_generation().fetch_add(1); });
  (void)registered;
  return generation;
}

void Session::Impl::begin() noexcept {
  protect([&] {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    install();
  });
  const double constructed = books->constructed();
  scheduler.spent(std::max(constructed - run_delay.take(), 0.0));
  end_of_last_step = Clock::now();
}

void Session::Impl::set_paused(bool paused) {
  if (paused ? pauses++ > 0 : --pauses > 0) return;
  settings_watch->set_paused(paused);
  snapshot.set_paused(paused);
  tapes->set_paused(paused);
  if (!hooked || !usable()) return;
  if (paused) {
    observer->pause();
  } else {
    observer->resume();
  }
}

void Session::Impl::step(const at::Tensor* loss, double loss_value, int64_t batch_size) {
  const auto begin = Clock::now();
  if (!usable() || close_wanted) return;
  if (pauses > 0) {
    notice("step_while_paused",
           "Session::step was called while the session was paused: the step is not counted");
    return;
  }
  const double step_seconds = had_step ? seconds_between(begin_of_last_step, begin)
                                       : std::numeric_limits<double>::quiet_NaN();
  const bool observed = !due.empty();
  in_hooks = books->take_hooks();
  const double between = seconds_between(end_of_last_step, begin);
  const double outside = undisturbed(between, begin, observed);
  if (had_step) {
    const double running = between > 0 ? outside / between : 1;
    scheduler.step_took(outside, hooks_installed(), in_hooks.total() * running);
  } else {
    scheduler.spent(in_hooks.total());
  }
  if (steps_seen++ == 0) {
    check_losses();
    check_environment();
    check_optimizer(false);
    if (early_validation) {
      notice("validation_before_first_step",
             "a held-out loss was given before the first step: it is not recorded");
    }
  }
  const bool rebinds = observed && model_changed();
  if (rebinds) drop_observation();
  const int64_t this_step = step_number;
  std::vector<size_t> next_due;
  const Needs next_needs = due_at(this_step + 1, false, &next_due);
  const std::vector<size_t> observed_probes = observed ? due : std::vector<size_t>();
  if (observed) {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    ++steps_observed;
    own_seconds.clear();
    StepView view;
    view.step = this_step;
    view.batch_size = batch_size;
    view.mean_reduction = options.loss_reduction() == Reduction::mean;
    view.step_seconds = step_seconds;
    view.tycho_seconds = inside_seconds + in_hooks.total();
    view.loss_value = loss_value;
    if (loss != nullptr) {
      if (hooked) observer->note_loss(*loss);
      view.loss_known = loss->defined() && loss->numel() == 1;
      if (view.loss_known) {
        view.loss = loss->detach().to(at::kDouble).reshape({});
      } else {
        notice("loss_not_scalar",
               "the loss given to Session::step is not a scalar: it is not recorded");
      }
    }
    if (batch_size <= 0) {
      view.batch_size = 0;
      notice("batch_size_not_positive",
             fmt::format("the batch size given to Session::step is {}: it is not recorded",
                         batch_size));
    }
    observe(&view, loss, next_needs);
    harvest(false);
  } else if (!pending.empty()) {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    harvest(false);
  }
  last_batch_size = batch_size;
  step_number = this_step + 1;
  due = std::move(next_due);
  scheduler.take(step_number, due);
  due_needs = next_needs;
  hooked = false;
  if (!due.empty()) {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    if (observed ? rebinds : model_changed()) rebind();
    install();
  } else {
    snapshot.invalidate();
  }
  if (observed && seconds_between(last_health, begin) > kHealthSeconds) health(begin);
  const auto end = Clock::now();
  const double inside = seconds_between(begin, end);
  const double disturbed = observed ? std::min(run_delay.take(), inside) : 0;
  if (observed) share_cost(observed_probes, inside, disturbed);
  scheduler.spent(inside - disturbed);
  if (observed) charge_live();
  inside_seconds = inside;
  begin_of_last_step = begin;
  end_of_last_step = end;
  had_step = true;
}

Needs Session::Impl::due_at(int64_t step, bool first, std::vector<size_t>* indices) const {
  scheduler.due(step, first, indices, [&](size_t i) { return losses->serve(probes[i].needs); });
  if (indices->empty() && tapes->collects()) scheduler.accompany(indices);
  Needs needs;
  for (const size_t index : *indices) needs |= probes[index].needs;
  if (!indices->empty()) needs |= tapes->needs(needs);
  return needs;
}

void Session::Impl::prepare_step() {
  due_needs = due_at(step_number, step_number == first_step, &due);
  scheduler.take(step_number, due);
}

void Session::Impl::check_losses() {
  for (size_t i = 0; i < probes.size(); ++i) {
    if (!probes[i].asked || losses->serve(probes[i].needs)) continue;
    if (tapes->collects() && !probes[i].needs.batch_surface) continue;
    event(v1::Event::NOT_OBSERVED, "loss_missing_" + probes[i].name,
          fmt::format("{} is not observed: it needs {}", probes[i].name,
                      losses->missing(probes[i].needs)),
          v1::SCOPE_RUN, 0);
  }
}

void Session::Impl::check_environment() {
  std::string all;
  for (const std::string& sentence : unknown_variables()) {
    all += (all.empty() ? "" : "; ") + sentence;
  }
  if (!all.empty()) notice("unknown_environment_variable", all);
}

void Session::Impl::install() {
  if (due.empty()) return;
  if (needs_snapshot()) {
    if (!snapshot.valid()) snapshot.take();
    snapshot.watch();
    snapshot.set_paused(pauses > 0);
  }
  settings_watch->install(watched_parameter());
  settings_watch->set_paused(pauses > 0);
  tapes->begin_step(due_needs);
  tapes->set_paused(pauses > 0);
  Needs hooks = hooks_of(due_needs);
  hooks.convolutions = due_needs.convolutions && observer->lacks_convolutions();
  hooked = any_hook(hooks) || hooks.convolutions;
  if (!hooked) return;
  // How layers are connected is worth knowing whatever is measured.
  hooks.symmetries = hooks.symmetries || !structure_known;
  observer->install(hooks, loss_scale, last_batch_size, tapes->recorder());
  if (pauses > 0) observer->pause();
}

at::Tensor Session::Impl::watched_parameter() const {
  for (auto parameter = facts.info.parameters.rbegin(); parameter != facts.info.parameters.rend();
       ++parameter) {
    if (!parameter->tensor.requires_grad() || !parameter->tensor.is_leaf()) continue;
    const auto& described = facts.description.parameter(static_cast<int>(parameter->id));
    if (described.parameter_group() >= 0) return parameter->tensor;
  }
  return {};
}

void Session::Impl::begin_again() {
  const at::NoGradGuard no_grad;
  const at::DisableRecordFunctionGuard unobserved;
  if (hooked) (void)observer->uninstall(0);
  hooked = false;
  prepare_step();
  install();
}

bool Session::Impl::usable() {
  if (closed) return false;
  if (fork_generation().load(std::memory_order_relaxed) == fork_of_birth) return true;
  // A forked child has no writing thread; the run belongs to its parent.
  closed = true;
  if (live) live->abandon();
  trace->abandon();
  directory->abandon();
  return false;
}

void Session::Impl::refuse() noexcept {
  try {
    notice("called_while_evaluating",
           "the session was called from inside a loss or a probe that it is evaluating: such calls "
           "are ignored");
  } catch (const std::exception&) {
    // Memory is out: it was refused all the same.
    return;
  }
}

void Session::Impl::close() noexcept {
  if (busy) {
    close_wanted = true;
    return;
  }
  close_wanted = false;
  // What fails must not keep the rest from being done: above all hooks have to go.
  const auto attempt = [](const auto& action) {
    try {
      action();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "tycho: closing failed: %s\n", error.what());
    } catch (...) {
      std::fprintf(stderr, "tycho: closing failed\n");
    }
  };
  bool open = false;
  attempt([&] { open = usable(); });
  if (!open) return;
  closed = true;
  // What closing costs is in the books, but for sealing the trace, which has to hold them.
  std::optional<CostBooks::Call> call;
  attempt([&] { call.emplace(books.get(), true); });
  attempt([&] { settings_watch->remove(); });
  attempt([&] { (void)snapshot.changed(); });
  attempt([&] { tapes.reset(); });
  attempt([&] { observer.reset(); });
  attempt([&] {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    harvest(true);
  });
  attempt([&] {
    trace->count_events();
    v1::Event stopped;
    stopped.set_step(step_number);
    stopped.set_kind(v1::Event::STOPPED);
    stopped.set_code("session_closed");
    stopped.set_message(fmt::format("The session was closed after {} steps", steps_seen));
    stopped.set_scope(v1::SCOPE_RUN);
    stopped.set_count(1);
    trace->push(std::move(stopped));
    trace->flush();
  });
  call.reset();
  attempt([&] { health(Clock::now()); });
  attempt([&] { close_live(); });
  attempt([&] { trace->close(); });
  attempt([&] { directory->release(); });
}

void Session::Impl::give_up(const char* what) noexcept {
  try {
    event(v1::Event::FAULT, "session_failed",
          fmt::format("the session failed and observes nothing any more: {}", what), v1::SCOPE_RUN,
          0);
  } catch (const std::exception&) {
    std::fprintf(stderr, "tycho: the session failed and observes nothing any more: %s\n", what);
  }
  pending.clear();
  close_wanted = true;
}

}  // namespace tycho
