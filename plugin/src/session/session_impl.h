#pragma once

#include <fmt/format.h>
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

#include "cost_books.h"
#include "curvature/user_losses.h"
#include "live/live_feed.h"
#include "model_info.h"
#include "model_source.h"
#include "observer.h"
#include "optimizer_settings.h"
#include "recorder.h"
#include "run_delay.h"
#include "run_directory.h"
#include "run_trace.h"
#include "schedule.h"
#include "tape/tape_losses.h"
#include "transfer.h"
#include "tycho/probe.h"
#include "tycho/session.h"
#include "weight_snapshot.h"

namespace tycho {

class LiveFindings;

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
///   live.cpp          what the session has to do with the judge that follows it
///   findings.cpp      verdicts while the run goes on; only this file needs the analyzer
///   validation.cpp    the held-out loss, as it is given
///   model_changes.cpp parameters that are replaced, added and removed in training
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

  std::unique_ptr<CostBooks> books;
  SessionOptions options;
  Optimizers optimizers;
  std::shared_ptr<torch::nn::Module> joint;  // of several modules; else empty
  std::unique_ptr<ModelState> model_state;
  ModelSource source;
  ModelFacts facts;
  std::vector<at::Tensor> model_tensors;      // of which `facts` tell
  std::vector<at::Tensor> optimizer_tensors;  // likewise
  int64_t model_changes = 0;
  std::vector<ProbeEntry> probes;
  v1::StatisticRegistry registry;
  Scheduler scheduler;
  std::unique_ptr<Observer> observer;
  std::unique_ptr<RunDirectory> directory;
  std::unique_ptr<RunTrace> trace;
  bool closed = false;
  uint64_t fork_of_birth = fork_generation().load();
  RecordBuilder::Say say;

  std::unique_ptr<UserLosses> losses;
  std::unique_ptr<TapeLosses> tapes;
  double loss_scale = 1;
  int pauses = 0;
  std::atomic<bool> busy{false};          // a call of the trainer's is running
  std::atomic<bool> close_wanted{false};  // by somebody inside it

  std::unique_ptr<LiveFeed> live;                // where the program asks for verdicts
  LiveFindings* findings = nullptr;              // the same
  double live_seconds = 0;                       // CPU time of its thread that was charged
  std::atomic<uint64_t> calls_from_listener{0};  // that were refused

  bool early_validation = false;  // a held-out loss was given before the first step

  int64_t step_number = 0;
  int64_t first_step = 0;
  int64_t last_batch_size = 0;
  std::vector<size_t> due;  // of the step that runs now
  Needs due_needs;
  bool hooked = false;
  std::string written_structure;
  bool structure_known = false;
  WeightSnapshot snapshot{facts.info};  // weights before the step that runs now
  int64_t unchanged_steps = 0;          // see sum_parameters
  int row_failures = 0;                 // see end_tape
  std::unique_ptr<SettingsWatch> settings_watch;
  std::string written_settings;
  v1::OptimizerSettings settings;

  std::deque<Pending> pending;
  Clock::time_point begin_of_last_step, end_of_last_step, last_health;
  bool had_step = false;
  double inside_seconds = 0;  // of the last call of step()
  RunDelay run_delay;
  Clock::time_point last_run_delay;
  double delay_outside = 0;   // that is still to be taken from the time between calls
  CostBooks::Hooks in_hooks;  // seconds, of the step that has just been
  uint64_t steps_seen = 0;
  uint64_t steps_observed = 0;
  std::map<size_t, double> own_seconds;  // by probe, of the step that is being recorded

  /// OptionError where the options or the model cannot be used.
  /// `session_books`: opened before anything was done.
  Impl(std::unique_ptr<CostBooks> session_books, std::unique_ptr<ModelState> state,
       ModelSource model, Optimizers user_optimizers, SessionOptions user_options);

  // construction.cpp

  void add_built_in_probes();
  std::unique_ptr<Observer> make_observer() const;
  /// `all`: layers that are not selected too.
  std::unique_ptr<TapeLosses> make_tapes(const ModelInfo& all);
  /// OptionError where its name or a statistic is taken.
  void add(std::unique_ptr<Probe> probe, ProbeSchedule schedule);
  /// Losses depend on layers that are not selected too.
  std::vector<ProbeLossSurface::Parameter> parameters_of_losses(const ModelInfo& all) const;
  v1::RunDescription run_description() const;
  void describe_run(v1::RunDescription* description) const;

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
  /// Once, when training begins: variables that have no effect.
  void check_environment();
  void install();
  /// Of those that the optimizer holds, the one whose gradient comes first in most networks.
  at::Tensor watched_parameter() const;
  /// Before the first step: what is observed at it has changed.
  void begin_again();
  void set_paused(bool paused);
  bool usable();
  /// From inside another call: when that is over.
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

  /// A call from the trainer: no exception leaves it. One from inside another, which a loss or a
  /// probe that is being evaluated makes, is refused, which is said; false then.
  template <typename Action>
  bool protect(const Action& action) noexcept {
    if (live && live->on_its_thread()) {
      ++calls_from_listener;
      return false;
    }
    if (busy) {
      refuse();
      return false;
    }
    busy = true;
    const CostBooks::Call call(books.get(), steps_seen == 0);
    try {
      action();
    } catch (const std::exception& error) {
      give_up(error.what());
    } catch (...) {
      give_up("an exception that is no std::exception");
    }
    busy = false;
    if (close_wanted) close();
    return true;
  }
  void refuse() noexcept;

  // observation.cpp

  bool needs_snapshot() const { return due_needs.previous_weights || due_needs.parameter_sums; }
  /// Weights that were changed since the last step by somebody else than the optimizer.
  void note_changed_weights();
  /// The settings the step used. Where they changed between the previous call of step() and this
  /// one, those in force when backward ran are right whether a scheduler is called before or after
  /// step().
  void note_settings();
  /// `loss`: as Session::step was given it; nullptr: as a number.
  void observe(StepView* view, const at::Tensor* loss, const Needs& next_needs);
  /// A gradient that was not copied is taken from `.grad`, provided it still is the one that
  /// backward delivered.
  at::Tensor sum_parameters(StepObservation* seen, bool refresh);
  /// Evaluates the step's tape; what single examples lack of `seen` is completed from it.
  void end_tape(TapeLosses::Step* taped, StepObservation* seen);
  void open_losses(StepView* view);
  /// The due probes look at the step, with the user's losses open; whatever is thrown, these have
  /// left no trace in the model afterwards.
  void run_probes(StepView* view, Pending* step);
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
    } catch (const NoProducts& error) {
      event(v1::Event::NOT_OBSERVED, "no_products_" + probes[index].name,
            fmt::format("{} is not observed: the loss has no Hessian: {}", probes[index].name,
                        error.what()),
            v1::SCOPE_RUN, 0);
    } catch (const std::exception& error) {
      fault(&probes[index], error.what());
    } catch (...) {
      fault(&probes[index], "an exception that is no std::exception");
    }
  }

  // live.cpp

  /// All records of the step were pushed.
  void end_live_step(int64_t step);
  /// Takes what the judge's thread did since the last call from the budget.
  void charge_live();
  /// What the judge could not do, each once.
  void say_live();
  /// The last records were pushed: what is known at the end goes to the trace.
  void close_live();

  // findings.cpp

  /// The judge, from now on.
  LiveFindings& follow();
  /// `late`: the trace has begun before.
  void start_live(bool late) noexcept;

  // validation.cpp

  /// Session::validation.
  void validation(double loss);

  // model_changes.cpp

  /// Whether model or optimizers hold other parameters than the observer watches. About a
  /// microsecond for each.
  bool model_changed() const;
  /// What was observed of a step in which that happened mixes old and new: only what needs nothing
  /// of the model is recorded of it.
  void drop_observation();
  /// From the next step on the parameters that are there now are observed. Where their names,
  /// shapes and groups are the same as before, other tensors take their places; else the trace goes
  /// on in a segment with the new model, and what is measured since the first observation begins
  /// anew.
  void rebind();
  void say_removed(const ModelFacts& now);
  void say_joined(const ModelFacts& before, const ModelFacts& now);
  /// Tensors that the optimizers hold and the model does not know.
  void check_optimizer(bool changed);
  void renew_probes();

  // costs.cpp

  void health(Clock::time_point now);
  void charge(size_t index, double seconds);
  /// Of the `seconds` between two calls of step() those in which the training thread ran or waited
  /// for something of its own, and not for its core. `read`: from the kernel's count; else only
  /// where some time has passed since it was last read, and the delay of several steps is then
  /// taken from the steps that follow.
  double undisturbed(double seconds, Clock::time_point now, bool read);
  Scheduler::Hooks hooks_installed() const;
  /// `inside`: seconds of the call of step(), `disturbed` of them without a core. A probe pays for
  /// itself. What is shared is paid by those that ask for hooks: hooks on
  /// gradients by all of them alike, what more it takes to watch operators by those that need it.
  void share_cost(const std::vector<size_t>& observed_probes, double inside, double disturbed);
};

}  // namespace tycho
