#include "tycho/session.h"

#include <ATen/record_function.h>
#include <fmt/format.h>
#include <pthread.h>
#include <sys/utsname.h>
#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <fstream>
#include <limits>
#include <set>
#include <utility>

#include "built_in.h"
#include "curvature/user_losses.h"
#include "model_info.h"
#include "observer.h"
#include "optimizer_settings.h"
#include "options.h"
#include "parameter_sums.h"
#include "recorder.h"
#include "run_trace.h"
#include "schedule.h"
#include "tensor_sums.h"
#include "transfer.h"
#include "tycho/probe.h"

#ifndef NDEBUG
#error "record_function.h has another layout without NDEBUG than in a release LibTorch"
#endif

namespace tycho {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// Counts the forks between a session's process and the calling one.
std::atomic<uint64_t>& fork_generation() {
  static std::atomic<uint64_t> generation{0};
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { fork_generation().fetch_add(1); });
  (void)registered;
  return generation;
}

std::string blas_of(const std::string& configuration) {
  const size_t at = configuration.find("BLAS_INFO=");
  if (at == std::string::npos) return "unknown";
  return configuration.substr(at + 10, configuration.find_first_of(",\n ", at) - at - 10);
}

std::vector<std::string> command_line() {
  std::vector<std::string> arguments;
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  for (std::string argument; std::getline(file, argument, '\0');) arguments.push_back(argument);
  return arguments;
}

bool is_zero(const at::Tensor& tensor) { return squared_norm(tensor).item<double>() == 0; }

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

constexpr uint64_t kFaultsUntilDisabled = 3;
constexpr size_t kPendingSteps = 64;
// Observed steps whose gradients nobody changed, after which they are not copied any more.
constexpr int64_t kUnchangedUntilTrusted = 3;
constexpr int64_t kNeverTrusted = std::numeric_limits<int64_t>::min();
constexpr double kHealthSeconds = 2;

}  // namespace

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

  template <typename Model>
  Impl(Model& model, torch::optim::Optimizer& user_optimizer, SessionOptions user_options)
      : options(with_environment(std::move(user_options))),
        optimizer(&user_optimizer),
        model_state(std::make_unique<ModelState>(model)),
        facts(describe(model, user_optimizer)),
        scheduler(options.overhead_budget()) {
    if (facts.info.parameters.empty()) {
      throw OptionError("tycho: the model has no parameters to observe");
    }
    const auto& described = facts.description.parameter();
    if (std::none_of(described.begin(), described.end(),
                     [](const v1::Parameter& p) { return p.parameter_group() >= 0; })) {
      throw OptionError("tycho: the optimizer holds none of the model's parameters");
    }
    const ModelInfo all = facts.info;
    select_layers(options, &facts);
    say = [this](v1::Event::Kind kind, const std::string& code, const std::string& message,
                 v1::Scope scope, uint32_t entity) { event(kind, code, message, scope, entity); };
    losses = std::make_unique<UserLosses>(
        *model_state, parameters_of_losses(all),
        [this](v1::Event::Kind kind, const std::string& code, const std::string& message) {
          event(kind, code, message, v1::SCOPE_RUN, 0);
        });
    losses->watch_layers(facts.info, options.batch_dim());
    add_built_in_probes();
    check_directory(options);
    trace = std::make_unique<RunTrace>(options.durability(), [this] {
      trace::RunWriterOptions writer_options;
      writer_options.directory = options.directory();
      return trace::RunWriter::open(writer_options, run_description(), facts.description, registry);
    });
    settings_watch = std::make_unique<SettingsWatch>(*optimizer);
    ObserverOptions observer_options;
    observer_options.batch_dim = options.batch_dim();
    observer_options.selected_layers.assign(facts.info.layers.size(), true);
    observer = std::make_unique<Observer>(facts.info, observer_options);
    step_number = first_step = options.resume().value_or(0);
    begin_of_last_step = end_of_last_step = last_health = Clock::now();
    prepare_step();
  }

  // Construction.

  void add_built_in_probes() {
    std::set<std::string> wanted;
    for (const auto& [name, interval] : options.every()) wanted.insert(name);
    for (const auto& [name, number] : options.log_spaced()) wanted.insert(name);
    std::string known;
    for (BuiltInProbe& built_in : built_in_probes()) {
      const std::string name = built_in.probe->name();
      known += (known.empty() ? "" : ", ") + name;
      std::vector<std::string> names = {name};
      for (const auto& definition : built_in.probe->statistics())
        names.push_back(definition.name());
      bool asked = false;
      ProbeSchedule schedule;
      schedule.share = name == "loss" ? 2 : 1;
      schedule.accompanies = name == "loss";
      schedule.expected_steps = built_in.expected_steps;
      for (const std::string& each : names) {
        asked = asked || wanted.count(each) > 0;
        wanted.erase(each);
        const auto every = options.every().find(each);
        if (every != options.every().end()) schedule.every = every->second;
        const auto log_spaced = options.log_spaced().find(each);
        if (log_spaced != options.log_spaced().end()) schedule.log_spaced = log_spaced->second;
      }
      const bool in_preset = static_cast<int>(built_in.tier) <= static_cast<int>(options.preset());
      if (!asked && !in_preset) continue;
      add(std::move(built_in.probe), schedule);
      probes.back().asked = asked;
    }
    if (!wanted.empty()) {
      throw OptionError(
          fmt::format("tycho: option every or log_spaced names \"{}\", which is neither a probe "
                      "nor a statistic; "
                      "built-in probes: {}",
                      *wanted.begin(), known));
    }
  }

  void add(std::unique_ptr<Probe> probe, ProbeSchedule schedule) {
    ProbeEntry entry;
    entry.name = probe->name();
    entry.needs = probe->needs();
    entry.needs.previous_weights = entry.needs.previous_weights || entry.needs.update;
    std::vector<v1::StatisticDefinition> definitions = probe->statistics();
    for (const ProbeEntry& other : probes) {
      if (other.name == entry.name) {
        throw OptionError(fmt::format("tycho: there is a probe \"{}\" already", entry.name));
      }
      for (const auto& definition : definitions) {
        if (other.ids.count(definition.name()) > 0) {
          throw OptionError(
              fmt::format("tycho: statistic \"{}\" of probe \"{}\" is recorded by \"{}\" already",
                          definition.name(), entry.name, other.name));
        }
      }
    }
    probe->setup(facts.info);
    for (v1::StatisticDefinition& definition : definitions) {
      const auto id = static_cast<uint32_t>(registry.statistic_size() + 1);
      definition.set_id(id);
      definition.set_probe(entry.name);
      entry.ids.emplace(definition.name(), id);
      *registry.add_statistic() = std::move(definition);
    }
    entry.probe = std::move(probe);
    probes.push_back(std::move(entry));
    scheduler.add(schedule);
  }

  /// Losses depend on layers that are not selected too.
  std::vector<ProbeLossSurface::Parameter> parameters_of_losses(const ModelInfo& all) const {
    std::vector<ProbeLossSurface::Parameter> parameters;
    for (const ParameterInfo& parameter : all.parameters) {
      const auto known = facts.ids.find(parameter.tensor.unsafeGetTensorImpl());
      parameters.push_back(
          {parameter.tensor, known == facts.ids.end() ? LossSurface::kNoParameter : known->second});
    }
    return parameters;
  }

  v1::RunDescription run_description() const {
    v1::RunDescription run;
    run.set_run_id(random_id());
    run.set_run_name(options.run_name());
    for (const std::string& tag : options.tags()) run.add_tags(tag);
    for (const auto& [name, value] : option_texts(options)) (*run.mutable_options())[name] = value;
    for (const std::string& argument : command_line()) run.add_command_line(argument);
    run.set_start_time_ns(wall_clock_ns());
    run.set_resumed(options.resume().has_value());
    run.set_resume_step(options.resume().value_or(0));
    auto& versions = *run.mutable_versions();
    versions["tycho"] = TYCHO_VERSION;
    versions["libtorch"] = TORCH_VERSION;
    versions["protobuf"] = fmt::format("{}", GOOGLE_PROTOBUF_VERSION);
    versions["compiler"] = __VERSION__;
    versions["standard"] = fmt::format("{}", __cplusplus);
    auto& environment = *run.mutable_environment();
    environment["threads"] = std::to_string(at::get_num_threads());
    environment["blas"] = blas_of(at::show_config());
    environment["device"] = facts.info.parameters.front().tensor.device().str();
    utsname system{};
    if (uname(&system) == 0) {
      environment["operating_system"] =
          fmt::format("{} {} {}", system.sysname, system.release, system.machine);
    }
    run.set_optimizer(optimizer_name(*optimizer));
    run.set_seed(options.seed());
    run.set_loss_reduction(options.loss_reduction() == Reduction::mean ? "mean" : "sum");
    return run;
  }

  void event(v1::Event::Kind kind, const std::string& code, const std::string& message,
             v1::Scope scope, uint32_t entity) {
    trace->event(step_number, kind, code, message, scope, entity);
  }

  void notice(const std::string& code, const std::string& message) {
    event(v1::Event::NOTICE, code, message, v1::SCOPE_RUN, 0);
  }

  void health(Clock::time_point now) {
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
    message.set_steps_seen(steps_seen);
    message.set_steps_observed(steps_observed);
    message.set_training_seconds(training_seconds);
    message.set_tycho_seconds(scheduler.spent_seconds());
    trace->push(std::move(message));
  }

  // A step.

  void fault(ProbeEntry* entry, const std::string& what) {
    event(v1::Event::FAULT, "probe_fault_" + entry->name,
          fmt::format("probe \"{}\" failed: {}", entry->name, what), v1::SCOPE_RUN, 0);
    if (++entry->faults < kFaultsUntilDisabled || entry->disabled) return;
    entry->disabled = true;
    scheduler.disable(static_cast<size_t>(entry - probes.data()));
    event(v1::Event::FAULT, "probe_disabled_" + entry->name,
          fmt::format("probe \"{}\" failed {} times and is disabled", entry->name, entry->faults),
          v1::SCOPE_RUN, 0);
  }

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

  bool needs_snapshot() const { return due_needs.previous_weights || due_needs.parameter_sums; }

  /// Decides what is observed at the step that begins now, and installs it.
  void prepare_step() { due_needs = due_at(step_number, step_number == first_step, &due); }

  /// A probe of a loss that was not given, or is suspended, is not due.
  Needs due_at(int64_t step, bool first, std::vector<size_t>* indices) const {
    scheduler.due(step, first, indices);
    indices->erase(std::remove_if(indices->begin(), indices->end(),
                                  [&](size_t i) { return !losses->serve(probes[i].needs); }),
                   indices->end());
    Needs needs;
    for (const size_t index : *indices) needs |= probes[index].needs;
    return needs;
  }

  /// Once, when training begins: what was asked for by name but cannot be had.
  void check_losses() {
    for (size_t i = 0; i < probes.size(); ++i) {
      if (!probes[i].asked || losses->serve(probes[i].needs)) continue;
      event(v1::Event::NOT_OBSERVED, "loss_missing_" + probes[i].name,
            fmt::format("{} is not observed: it needs {}", probes[i].name,
                        losses->missing(probes[i].needs)),
            v1::SCOPE_RUN, 0);
    }
  }

  void install() {
    if (due.empty()) return;
    if (needs_snapshot() && !snapshot_valid) take_snapshot();
    settings_watch->install(watched_parameter());
    settings_watch->set_paused(pauses > 0);
    Needs hooks = hooks_of(due_needs);
    hooks.convolutions = due_needs.convolutions && observer->lacks_convolutions();
    hooked = any_hook(hooks) || hooks.convolutions;
    if (!hooked) return;
    // How layers are connected is worth knowing whatever is measured.
    hooks.symmetries = hooks.symmetries || !structure_known;
    observer->install(hooks, loss_scale, last_batch_size);
    if (pauses > 0) observer->pause();
  }

  /// Of those that the optimizer holds, the one whose gradient comes first in most networks.
  at::Tensor watched_parameter() const {
    for (auto parameter = facts.info.parameters.rbegin(); parameter != facts.info.parameters.rend();
         ++parameter) {
      if (!parameter->tensor.requires_grad() || !parameter->tensor.is_leaf()) continue;
      const auto& described = facts.description.parameter(static_cast<int>(parameter->id));
      if (described.parameter_group() >= 0) return parameter->tensor;
    }
    return {};
  }

  /// Before the first step: what is observed at it has changed.
  void begin_again() {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    if (hooked) (void)observer->uninstall(0);
    hooked = false;
    prepare_step();
    install();
  }

  /// A loss that comes between steps counts from the next observed step on.
  template <typename Change>
  void change_losses(const Change& change) {
    protect([&] {
      if (usable() && change() && !had_step) begin_again();
    });
  }

  void take_snapshot() {
    snapshot.resize(facts.info.parameters.size());
    for (const ParameterInfo& parameter : facts.info.parameters) {
      at::Tensor& copy = snapshot[parameter.id];
      const at::Tensor weight = parameter.tensor.detach();
      if (copy.defined() && copy.sizes() == weight.sizes() && copy.device() == weight.device() &&
          copy.scalar_type() == weight.scalar_type()) {
        copy.copy_(weight);
      } else {
        copy = weight.clone();
      }
    }
    snapshot_valid = true;
  }

  /// The settings the step used. Where they changed between the previous call of step() and this
  /// one, those in force when backward ran are right whether a scheduler is called before or after
  /// step().
  void note_settings() {
    const std::string used = settings_watch->take();
    if (used == written_settings && settings.group_size() > 0) return;
    written_settings = used;
    settings = settings_of(used, *optimizer, facts.ids);
    settings.set_step(step_number);
    trace->push(settings);
  }

  void observe(StepView* view, const Needs& next_needs) {
    StepObservation seen;
    if (hooked) {
      seen = observer->uninstall(view->batch_size > 0 ? view->batch_size : 0);
    } else {
      seen.parameters.resize(facts.info.parameters.size());
      seen.fingerprints.resize(facts.info.parameters.size());
      seen.layers.resize(facts.info.layers.size());
    }
    note_settings();
    for (const ObserverNotice& n : seen.notices)
      event(n.kind, n.code, n.message, n.scope, n.entity);
    if (hooked) check_gradients(seen);
    bool refreshed = false;
    for (const ParameterInfo& parameter : facts.info.parameters) {
      ParameterObservation& observation = seen.parameters[parameter.id];
      if (snapshot_valid) observation.previous_weight = snapshot[parameter.id];
      observation.update_known = snapshot_valid;
      if (due_needs.adam_state) read_adam_state(*optimizer, parameter.tensor, &observation);
    }
    const bool snapshot_next = next_needs.previous_weights || next_needs.parameter_sums;
    if (due_needs.parameter_sums) {
      refreshed = snapshot_next && snapshot_valid && !due_needs.previous_weights;
      view->parameter_sums = sum_parameters(&seen, refreshed);
    }
    view->model = &facts.info;
    view->optimizer = &settings;
    view->parameters = &seen.parameters;
    view->layers = &seen.layers;
    view->symmetries = &seen.symmetries;
    view->convolutions = &observer->convolutions();
    view->seed = options.seed();
    open_losses(view);

    Pending step;
    step.step = view->step;
    step.time_ns = wall_clock_ns();
    step.transfer = std::make_unique<StepTransfer>();
    for (const size_t index : due) {
      if (probes[index].disabled) continue;
      const auto begin = Clock::now();
      guarded(index, [&] {
        Probe::Finish finish = probes[index].probe->observe(*view, *step.transfer);
        if (finish) step.finishes.emplace_back(index, std::move(finish));
      });
      losses->settle(view);
      charge(index, seconds_between(begin, Clock::now()));
    }
    losses->close();
    for (const ObserverNotice& n : losses->take_notices()) {
      event(n.kind, n.code, n.message, n.scope, n.entity);
    }
    step.transfer->start();
    pending.push_back(std::move(step));
    snapshot_valid = refreshed;
    if (seen.structure) {
      structure_known = true;
      std::string now = seen.structure->SerializeAsString();
      if (now != written_structure) {
        written_structure = std::move(now);
        trace->push(std::move(*seen.structure));
      }
    }
  }

  /// A gradient that was not copied is taken from `.grad`, provided it still is the one that
  /// backward delivered.
  at::Tensor sum_parameters(StepObservation* seen, bool refresh) {
    std::vector<SumsInput> inputs;
    inputs.reserve(facts.info.parameters.size());
    bool copied = false;
    bool changed = false;
    for (const ParameterInfo& parameter : facts.info.parameters) {
      ParameterObservation& observation = seen->parameters[parameter.id];
      const at::Tensor& fingerprint = seen->fingerprints[parameter.id];
      const at::Tensor grad = parameter.tensor.grad();
      if (fingerprint.defined()) {
        observation.gradient = grad;
      } else if (unchanged_steps >= 0 && unchanged_steps < kUnchangedUntilTrusted &&
                 observation.gradient.defined() && observation.gradient.device().is_cpu()) {
        copied = true;
        changed = changed || !grad.defined() || !at::equal(grad, observation.gradient);
      }
      inputs.push_back({parameter.tensor.detach(), observation.gradient,
                        observation.previous_weight, fingerprint});
    }
    ParameterSums result = parameter_sums(inputs, refresh);
    for (const size_t id : result.changed) {
      changed = true;
      seen->parameters[id].gradient = at::Tensor();
      event(v1::Event::NOT_OBSERVED, "gradient_changed_before_step",
            fmt::format("the gradient of {} was changed between backward and the optimizer, for "
                        "the first time after {} steps: this step has no inner products with it, "
                        "and gradients are copied from now on",
                        facts.info.parameters[id].name, unchanged_steps),
            v1::SCOPE_PARAMETER, static_cast<uint32_t>(id));
    }
    if (changed) {
      unchanged_steps = kNeverTrusted;
    } else if (copied && unchanged_steps >= 0) {
      ++unchanged_steps;
    }
    observer->trust_gradients(unchanged_steps >= kUnchangedUntilTrusted);
    return result.sums;
  }

  void charge(size_t index, double seconds) {
    probes[index].seconds += seconds;
    own_seconds[index] += seconds;
  }
  std::map<size_t, double> own_seconds;  // of the step that is being recorded

  void open_losses(StepView* view) {
    try {
      losses->open(due_needs, *optimizer, view);
      if (due_needs.probe_loss && view->surface != nullptr) {
        view->probe_loss = view->surface->value();
      }
    } catch (const LossError& error) {
      view->surface = nullptr;
      losses->suspend(error);
    }
  }

  /// Gradients that backward delivered but that are gone, or zero, before step(): the optimizer may
  /// have seen none.
  void check_gradients(const StepObservation& seen) {
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
    std::partial_sort(there.begin(), there.begin() + static_cast<std::ptrdiff_t>(looks),
                      there.end(), smaller);
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

  void harvest(bool wait) {
    while (!pending.empty()) {
      Pending& step = pending.front();
      if (!step.transfer->ready()) {
        if (!wait && pending.size() <= kPendingSteps) return;
        step.transfer->wait();
      }
      for (auto& [index, finish] : step.finishes) {
        const auto begin = Clock::now();
        guarded(index, [&, probe = index] {
          RecordBuilder recorder(probes[probe].ids, say, step.step);
          finish(*step.transfer, recorder);
          v1::Record record = recorder.take();
          if (record.column_size() > 0)
            trace->push(std::move(record), probes[probe].name, step.time_ns);
        });
        ++probes[index].observations;
        charge(index, seconds_between(begin, Clock::now()));
      }
      pending.pop_front();
    }
  }

  bool usable() {
    if (closed) return false;
    if (fork_generation().load(std::memory_order_relaxed) == fork_of_birth) return true;
    // A forked child has no writing thread; the run belongs to its parent.
    closed = true;
    trace->abandon();
    return false;
  }

  void step(const at::Tensor* loss, double loss_value, int64_t batch_size) {
    const auto begin = Clock::now();
    if (!usable()) return;
    if (pauses > 0) {
      notice("step_while_paused",
             "Session::step was called while the session is paused: not counted");
      return;
    }
    const double outside = seconds_between(end_of_last_step, begin);
    const double step_seconds = had_step ? seconds_between(begin_of_last_step, begin)
                                         : std::numeric_limits<double>::quiet_NaN();
    const bool observed = !due.empty();
    if (had_step) {
      scheduler.step_took(outside, observed, hooks_installed(), combination_of(due));
      training_seconds += step_seconds;
    }
    if (steps_seen++ == 0) check_losses();
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
      view.tycho_seconds = inside_seconds;
      view.loss_value = loss_value;
      if (loss != nullptr) {
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
      observe(&view, next_needs);
      harvest(false);
    } else if (!pending.empty()) {
      const at::NoGradGuard no_grad;
      const at::DisableRecordFunctionGuard unobserved;
      harvest(false);
    }
    last_batch_size = batch_size;
    step_number = this_step + 1;
    due = std::move(next_due);
    due_needs = next_needs;
    hooked = false;
    if (!due.empty()) {
      const at::NoGradGuard no_grad;
      const at::DisableRecordFunctionGuard unobserved;
      install();
    } else {
      snapshot_valid = false;
    }
    if (observed && seconds_between(last_health, begin) > kHealthSeconds) health(begin);
    const auto end = Clock::now();
    const double inside = seconds_between(begin, end);
    if (observed) share_cost(observed_probes, inside);
    scheduler.spent(inside);
    total_inside_seconds += inside;
    inside_seconds = inside;
    begin_of_last_step = begin;
    end_of_last_step = end;
    had_step = true;
  }

  Scheduler::Hooks hooks_installed() const {
    if (!hooked) return Scheduler::Hooks::kNone;
    return watches_operators(hooks_of(due_needs)) ? Scheduler::Hooks::kOperators
                                                  : Scheduler::Hooks::kGradients;
  }

  /// The probes that ask for hooks, as bits; probes beyond the 64th share bits.
  uint64_t combination_of(const std::vector<size_t>& observed_probes) const {
    uint64_t bits = 0;
    for (const size_t index : observed_probes) {
      if (any_hook(hooks_of(probes[index].needs))) bits |= uint64_t{1} << (index % 64);
    }
    return bits;
  }

  /// A probe pays for itself. What is shared is paid by those that ask for hooks: hooks on
  /// gradients by all of them alike, what more it takes to watch operators by those that need it.
  void share_cost(const std::vector<size_t>& observed_probes, double inside) {
    double own = 0;
    for (const auto& [index, seconds] : own_seconds) own += seconds;
    size_t hooking = 0;
    size_t watching = 0;
    for (const size_t index : observed_probes) {
      const Needs hooks = hooks_of(probes[index].needs);
      hooking += any_hook(hooks);
      watching += watches_operators(hooks);
    }
    const double excess = scheduler.last_excess();
    const double of_gradients =
        watching == 0 ? excess : std::min(scheduler.gradient_excess(), excess);
    const double shared = std::max(inside - own, 0.0) + of_gradients;
    for (const size_t index : observed_probes) {
      const Needs hooks = hooks_of(probes[index].needs);
      double part = 0;
      if (hooking == 0) part = shared / static_cast<double>(observed_probes.size());
      if (any_hook(hooks)) part = shared / static_cast<double>(hooking);
      if (watches_operators(hooks)) part += (excess - of_gradients) / static_cast<double>(watching);
      scheduler.observed(index, own_seconds[index] + part);
    }
  }

  void close() noexcept {
    try {
      if (!usable()) return;
      closed = true;
      settings_watch->remove();
      observer.reset();
      {
        const at::NoGradGuard no_grad;
        const at::DisableRecordFunctionGuard unobserved;
        harvest(true);
      }
      trace->count_events();
      v1::Event stopped;
      stopped.set_step(step_number);
      stopped.set_kind(v1::Event::STOPPED);
      stopped.set_code("session_closed");
      stopped.set_message(fmt::format("The session was closed after {} steps", steps_seen));
      stopped.set_scope(v1::SCOPE_RUN);
      stopped.set_count(1);
      trace->push(std::move(stopped));
      health(Clock::now());
      trace->close();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "tycho: closing failed: %s\n", error.what());
    } catch (...) {
      std::fprintf(stderr, "tycho: closing failed\n");
    }
  }

  /// Something in Tycho itself failed: training goes on, this session observes nothing any more.
  void give_up(const char* what) noexcept {
    try {
      event(v1::Event::FAULT, "session_failed",
            fmt::format("the session failed and observes nothing any more: {}", what),
            v1::SCOPE_RUN, 0);
      pending.clear();
      close();
    } catch (...) {
      closed = true;
    }
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
};

Session::Session(torch::nn::Module& model, torch::optim::Optimizer& optimizer,
                 SessionOptions options) {
  if (disabled_by_environment()) return;
  impl_ = std::make_unique<Impl>(model, optimizer, std::move(options));
  impl_->protect([&] {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    impl_->install();
  });
}

Session::Session(torch::jit::Module& model, torch::optim::Optimizer& optimizer,
                 SessionOptions options) {
  if (disabled_by_environment()) return;
  impl_ = std::make_unique<Impl>(model, optimizer, std::move(options));
  impl_->protect([&] {
    const at::NoGradGuard no_grad;
    const at::DisableRecordFunctionGuard unobserved;
    impl_->install();
  });
}

Session::~Session() {
  if (impl_) impl_->close();
}

void Session::add_probe(std::unique_ptr<Probe> probe, int64_t every) {
  if (!impl_ || !probe) return;
  impl_->protect([&] {
    if (!impl_->usable()) return;
    if (impl_->had_step || impl_->trace->begun()) {
      impl_->notice("probe_added_late",
                    "a probe was added after the first step: it is not observed");
      return;
    }
    try {
      ProbeSchedule schedule;
      if (every > 0) schedule.every = every;
      impl_->add(std::move(probe), schedule);
    } catch (const std::exception& error) {
      impl_->trace->print_once("probe_refused",
                               fmt::format("a probe was not added: {}", error.what()));
      return;
    }
    impl_->begin_again();
  });
}

void Session::set_probe_loss(std::function<at::Tensor()> probe_loss) {
  ProbeLoss loss;
  if (probe_loss) {
    loss.loss = [f = std::move(probe_loss)](const at::Tensor&, int64_t) { return f(); };
  }
  set_probe_loss(std::move(loss));
}

void Session::set_probe_loss(ProbeLoss probe_loss) {
  if (!impl_) return;
  impl_->change_losses([&] { return impl_->losses->set_probe(std::move(probe_loss)); });
}

void Session::set_step_loss(std::function<at::Tensor()> step_loss) {
  if (!impl_) return;
  impl_->change_losses([&] { return impl_->losses->set_step(std::move(step_loss)); });
}

void Session::set_batch_loss(std::function<at::Tensor(int64_t)> batch_loss) {
  if (!impl_) return;
  impl_->change_losses([&] { return impl_->losses->set_batches(std::move(batch_loss)); });
}

void Session::set_loss_scale(double scale) {
  if (!impl_) return;
  impl_->protect([&] {
    if (!impl_->usable()) return;
    if (!(scale > 0) || !std::isfinite(scale)) {
      impl_->notice("loss_scale_not_positive",
                    "the loss scale is not a positive number: it is ignored");
      return;
    }
    impl_->loss_scale = scale;
    if (impl_->hooked) impl_->observer->set_loss_scale(scale);
  });
}

void Session::step(const at::Tensor& loss, int64_t batch_size) {
  if (!impl_) return;
  impl_->protect([&] { impl_->step(&loss, 0, batch_size); });
}

void Session::step(double loss, int64_t batch_size) {
  if (!impl_) return;
  impl_->protect([&] { impl_->step(nullptr, loss, batch_size); });
}

Session::Pause::Pause(Session* session) : session_(session) {
  if (session_ == nullptr || !session_->impl_) return;
  Impl& impl = *session_->impl_;
  impl.protect([&] {
    if (impl.pauses++ > 0) return;
    impl.settings_watch->set_paused(true);
    if (impl.hooked && impl.usable()) impl.observer->pause();
  });
}

Session::Pause::Pause(Pause&& other) noexcept : session_(std::exchange(other.session_, nullptr)) {}

Session::Pause::~Pause() {
  if (session_ == nullptr || !session_->impl_) return;
  Impl& impl = *session_->impl_;
  impl.protect([&] {
    if (--impl.pauses > 0) return;
    impl.settings_watch->set_paused(false);
    if (impl.hooked && impl.usable()) impl.observer->resume();
  });
}

Session::Pause Session::pause() { return Pause(this); }

void Session::close() {
  if (impl_) impl_->close();
}

}  // namespace tycho
