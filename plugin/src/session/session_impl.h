#pragma once

#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "curvature/user_losses.h"
#include "model_info.h"
#include "observer.h"
#include "optimizer_settings.h"
#include "recorder.h"
#include "run_trace.h"
#include "schedule.h"
#include "transfer.h"
#include "tycho/probe.h"
#include "tycho/session.h"

namespace tycho {

using Clock = std::chrono::steady_clock;

inline double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// Counts the forks between a session's process and the calling one.
std::atomic<uint64_t>& fork_generation();

/// What has to be installed in the step for these needs.
Needs hooks_of(const Needs& needs);
bool any_hook(const Needs& hooks);
bool watches_operators(const Needs& hooks);

/// What a Session does. Members are defined in
///   construction.cpp  probes, registry, run description
///   step.cpp          the life of a session: what is due, installed, ended, closed
///   observation.cpp   an observed step: from hooks to probes to the trace
///   costs.cpp         what an observed step cost, and who pays
/// Of one thread at a time.
struct Session::Impl {
  struct ProbeEntry {
    std::unique_ptr<Probe> probe;
    std::string name;
    Needs needs;
    std::unordered_map<std::string, uint32_t> ids;
    uint64_t faults = 0;
    bool disabled = false;
    bool asked = false;         // by name, with every() or log_spaced()
    double seconds = 0;         // since the last Health message
    uint64_t observations = 0;  // since the last Health message
  };

  /// An observed step whose numbers are on their way.
  struct Pending {
    int64_t step = 0;
    int64_t time_ns = 0;
    std::unique_ptr<StepTransfer> transfer;
    std::vector<std::pair<size_t, Probe::Finish>> finishes;
  };

  SessionOptions options;
  torch::optim::Optimizer* optimizer = nullptr;
  std::unique_ptr<ModelState> model_state;
  ModelFacts facts;
  std::vector<ProbeEntry> probes;
  v1::StatisticRegistry registry;
  Scheduler scheduler;
  std::unique_ptr<Observer> observer;
  std::unique_ptr<RunTrace> trace;
  bool closed = false;
  uint64_t fork_of_birth = fork_generation().load();
  RecordBuilder::Say say;

  std::unique_ptr<UserLosses> losses;
  double loss_scale = 1;
  int pauses = 0;

  int64_t step_number = 0;
  int64_t first_step = 0;
  int64_t last_batch_size = 0;
  std::vector<size_t> due;  // of the step that runs now
  Needs due_needs;
  bool hooked = false;
  std::string written_structure;
  bool structure_known = false;
  std::vector<at::Tensor> snapshot;  // weights before the step that runs now
  bool snapshot_valid = false;
  int64_t unchanged_steps = 0;  // see sum_parameters
  std::unique_ptr<SettingsWatch> settings_watch;
  std::string written_settings;
  v1::OptimizerSettings settings;

  std::deque<Pending> pending;
  Clock::time_point begin_of_last_step, end_of_last_step, last_health;
  bool had_step = false;
  double inside_seconds = 0;  // of the session's calls since begin_of_last_step
  double total_inside_seconds = 0;
  double training_seconds = 0;
  uint64_t steps_seen = 0;
  uint64_t steps_observed = 0;
  std::map<size_t, double> own_seconds;  // by probe, of the step that is being recorded

  /// OptionError where the options or the model cannot be used.
  Impl(std::unique_ptr<ModelState> state, ModelFacts model, torch::optim::Optimizer& user_optimizer,
       SessionOptions user_options);

  // construction.cpp

  void add_built_in_probes();
  /// OptionError where its name or a statistic is taken.
  void add(std::unique_ptr<Probe> probe, ProbeSchedule schedule);
  /// Losses depend on layers that are not selected too.
  std::vector<ProbeLossSurface::Parameter> parameters_of_losses(const ModelInfo& all) const;
  v1::RunDescription run_description() const;

  // step.cpp

  /// The first step's hooks. Does not throw.
  void begin() noexcept;
  /// Session::step; `loss` null: `loss_value` is the loss.
  void step(const at::Tensor* loss, double loss_value, int64_t batch_size);
  /// A probe of a loss that was not given, or is suspended, is not due.
  Needs due_at(int64_t step, bool first, std::vector<size_t>* indices) const;
  /// Decides what is observed at the step that begins now.
  void prepare_step();
  /// Once, when training begins: what was asked for by name but cannot be had.
  void check_losses();
  void install();
  /// Of those that the optimizer holds, the one whose gradient comes first in most networks.
  at::Tensor watched_parameter() const;
  /// Before the first step: what is observed at it has changed.
  void begin_again();
  void set_paused(bool paused);
  bool usable();
  void close() noexcept;
  /// Something in Tycho itself failed: training goes on, this session observes nothing any more.
  void give_up(const char* what) noexcept;

  /// A loss that comes between steps counts from the next observed step on.
  template <typename Change>
  void change_losses(const Change& change) {
    protect([&] {
      if (usable() && change() && !had_step) begin_again();
    });
  }

  template <typename Action>
  void protect(const Action& action) noexcept {
    try {
      action();
    } catch (const std::exception& error) {
      give_up(error.what());
    } catch (...) {
      give_up("an exception that is no std::exception");
    }
  }

  // observation.cpp

  bool needs_snapshot() const { return due_needs.previous_weights || due_needs.parameter_sums; }
  void take_snapshot();
  /// The settings the step used. Where they changed between the previous call of step() and this
  /// one, those in force when backward ran are right whether a scheduler is called before or after
  /// step().
  void note_settings();
  void observe(StepView* view, const Needs& next_needs);
  /// A gradient that was not copied is taken from `.grad`, provided it still is the one that
  /// backward delivered.
  at::Tensor sum_parameters(StepObservation* seen, bool refresh);
  void open_losses(StepView* view);
  /// Gradients that backward delivered but that are gone, or zero, before step(): the optimizer may
  /// have seen none.
  void check_gradients(const StepObservation& seen);
  /// Records what has arrived; all of it with `wait`.
  void harvest(bool wait);
  void fault(ProbeEntry* entry, const std::string& what);
  void event(v1::Event::Kind kind, const std::string& code, const std::string& message,
             v1::Scope scope, uint32_t entity);
  void notice(const std::string& code, const std::string& message);

  template <typename Action>
  void guarded(size_t index, const Action& action) {
    try {
      action();
    } catch (const LossError& error) {
      losses->suspend(error);
    } catch (const std::exception& error) {
      fault(&probes[index], error.what());
    } catch (...) {
      fault(&probes[index], "an exception that is no std::exception");
    }
  }

  // costs.cpp

  void health(Clock::time_point now);
  void charge(size_t index, double seconds);
  Scheduler::Hooks hooks_installed() const;
  /// The probes that ask for hooks, as bits; probes beyond the 64th share bits.
  uint64_t combination_of(const std::vector<size_t>& observed_probes) const;
  /// A probe pays for itself. What is shared is paid by those that ask for hooks: hooks on
  /// gradients by all of them alike, what more it takes to watch operators by those that need it.
  void share_cost(const std::vector<size_t>& observed_probes, double inside);
};

}  // namespace tycho
