#include <fmt/format.h>
#include <sys/utsname.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "built_in.h"
#include "options.h"
#include "session/session_impl.h"
#include "valid_text.h"

namespace tycho {
namespace {

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

Tier largest_tier(const SessionOptions& options) {
  switch (options.preset()) {
    case Preset::economy:
      return Tier::kEconomy;
    case Preset::standard:
      return options.overhead_budget() || options.schedule() == Schedule::fixed ? Tier::kBudgeted
                                                                                : Tier::kStandard;
    default:
      return Tier::kFull;
  }
}

/// Whether one of the optimizers has one of the names; true without names.
bool trained_by(const Optimizers& optimizers, const std::vector<std::string>& names) {
  return names.empty() ||
         std::any_of(optimizers.begin(), optimizers.end(), [&](torch::optim::Optimizer* each) {
           return std::count(names.begin(), names.end(), optimizer_name(*each)) > 0;
         });
}

}  // namespace

Session::Impl::Impl(std::unique_ptr<CostBooks> session_books, std::unique_ptr<ModelState> state,
                    ModelSource model, Optimizers user_optimizers, SessionOptions user_options)
    : books(std::move(session_books)),
      options(with_environment(std::move(user_options))),
      optimizers(std::move(user_optimizers)),
      model_state(std::move(state)),
      source(std::move(model)),
      facts(source.describe()),
      model_tensors(source.tensors()),
      optimizer_tensors(held_tensors(optimizers)),
      scheduler(options.schedule() == Schedule::fixed ? std::nullopt : options.overhead_budget(),
                options.early_share(), options.early_seconds()) {
  (void)run_delay.take();
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
  tapes = make_tapes(all);
  add_built_in_probes();
  directory = std::make_unique<RunDirectory>(options);
  options.directory(directory->path());
  trace = std::make_unique<RunTrace>(options.durability(), [this] {
    trace::RunWriterOptions writer_options;
    writer_options.directory = options.directory();
    return trace::RunWriter::open(writer_options, run_description(), facts.description, registry);
  });
  if (!directory->moved().empty()) trace->print_once("directory_taken", directory->moved());
  settings_watch = std::make_unique<SettingsWatch>(optimizers);
  observer = make_observer();
  step_number = first_step = options.resume().value_or(0);
  begin_of_last_step = end_of_last_step = last_health = Clock::now();
  prepare_step();
}

std::unique_ptr<TapeLosses> Session::Impl::make_tapes(const ModelInfo& all) {
  TapeLosses::Options tape_options;
  tape_options.enabled = options.tape();
  tape_options.memory = options.tape_memory() << 20;
  tape_options.mean_reduction = options.loss_reduction() == Reduction::mean;
  tape_options.meter = books->operator_hooks();
  return std::make_unique<TapeLosses>(
      *model_state, parameters_of_losses(all), losses.get(),
      [this](v1::Event::Kind kind, const std::string& code, const std::string& message) {
        event(kind, code, message, v1::SCOPE_RUN, 0);
      },
      tape_options);
}

std::unique_ptr<Observer> Session::Impl::make_observer() const {
  ObserverOptions observer_options;
  observer_options.batch_dim = options.batch_dim();
  observer_options.selected_layers.assign(facts.info.layers.size(), true);
  observer_options.gradient_hooks = books->gradient_hooks();
  observer_options.operator_hooks = books->operator_hooks();
  observer_options.optimizer_evaluates =
      std::any_of(optimizers.begin(), optimizers.end(), [](torch::optim::Optimizer* each) {
        return dynamic_cast<torch::optim::LBFGS*>(each) != nullptr;
      });
  return std::make_unique<Observer>(facts.info, observer_options);
}

void Session::Impl::add_built_in_probes() {
  std::set<std::string> wanted;
  for (const auto& [name, interval] : options.every()) wanted.insert(name);
  for (const auto& [name, number] : options.log_spaced()) wanted.insert(name);
  std::string known;
  for (BuiltInProbe& built_in : built_in_probes()) {
    if (built_in.given) {
      add(std::move(built_in.probe), ProbeSchedule());
      scheduler.disable(probes.size() - 1);
      continue;
    }
    const std::string name = built_in.probe->name();
    known += (known.empty() ? "" : ", ") + name;
    std::vector<std::string> names = {name};
    for (const auto& definition : built_in.probe->statistics()) names.push_back(definition.name());
    bool asked = false;
    ProbeSchedule schedule;
    using Accompanies = ProbeSchedule::Accompanies;
    if (built_in.accompanies_probe_loss) schedule.accompanies = Accompanies::kProbeLoss;
    if (built_in.accompanies_all) schedule.accompanies = Accompanies::kAll;
    schedule.expected_steps = built_in.expected_steps;
    schedule.per_decade = built_in.per_decade;
    schedule.guaranteed = built_in.guaranteed;
    schedule.steps_in_a_row = built_in.steps_in_a_row;
    schedule.laws = built_in.laws;
    for (size_t i = 0; i < probes.size(); ++i) {
      if (probes[i].name == built_in.accompanies) schedule.accompanies_probe = i;
    }
    for (const std::string& each : names) {
      asked = asked || wanted.count(each) > 0;
      wanted.erase(each);
      const auto every = options.every().find(each);
      if (every != options.every().end()) schedule.every = every->second;
      const auto log_spaced = options.log_spaced().find(each);
      if (log_spaced != options.log_spaced().end()) schedule.log_spaced = log_spaced->second;
    }
    if (options.schedule() == Schedule::fixed && !schedule.every && !schedule.log_spaced &&
        schedule.accompanies != Accompanies::kAll) {
      schedule.log_spaced = static_cast<int64_t>(built_in.per_decade);
    }
    const bool in_preset =
        built_in.tier <= largest_tier(options) && trained_by(optimizers, built_in.optimizers);
    if (!asked && !in_preset) continue;
    add(std::move(built_in.probe), schedule);
    probes.back().asked = asked;
  }
  if (!wanted.empty()) {
    throw OptionError(
        fmt::format("tycho: option every or log_spaced names \"{}\", which is neither a probe "
                    "nor a statistic that steps observe; "
                    "built-in probes: {}",
                    *wanted.begin(), known));
  }
}

void Session::Impl::add(std::unique_ptr<Probe> probe, ProbeSchedule schedule) {
  ProbeEntry entry;
  entry.name = probe->name();
  entry.needs = probe->needs();
  entry.needs.previous_weights = entry.needs.previous_weights || entry.needs.update;
  std::vector<v1::StatisticDefinition> definitions = probe->statistics();
  schedule.is_reference = std::any_of(definitions.begin(), definitions.end(), [](const auto& each) {
    return each.since_first_observation();
  });
  schedule.evaluates_probe_loss = UserLosses::evaluates_probe(entry.needs);
  for (const ProbeEntry& other : probes) {
    if (other.name == entry.name) {
      throw OptionError(fmt::format("tycho: probe \"{}\" exists already", entry.name));
    }
    for (const auto& definition : definitions) {
      if (other.ids.count(definition.name()) > 0) {
        throw OptionError(
            fmt::format("tycho: statistic \"{}\" of probe \"{}\" is already recorded by \"{}\"",
                        definition.name(), entry.name, other.name));
      }
    }
  }
  probe->setup(facts.info);
  for (v1::StatisticDefinition& definition : definitions) {
    const auto id = static_cast<uint32_t>(registry.statistic_size() + 1);
    definition.set_id(id);
    definition.set_probe(valid_text(entry.name));
    entry.ids.emplace(definition.name(), id);
    definition.set_name(valid_text(definition.name()));
    definition.set_symbol(valid_text(definition.symbol()));
    definition.set_unit(valid_text(definition.unit()));
    definition.set_definition(valid_text(definition.definition()));
    definition.set_source(valid_text(definition.source()));
    *registry.add_statistic() = std::move(definition);
  }
  entry.probe = std::move(probe);
  probes.push_back(std::move(entry));
  scheduler.add(schedule);
}

std::vector<ProbeLossSurface::Parameter> Session::Impl::parameters_of_losses(
    const ModelInfo& all) const {
  std::vector<ProbeLossSurface::Parameter> parameters;
  for (const ParameterInfo& parameter : all.parameters) {
    const auto known = facts.ids.find(parameter.tensor.unsafeGetTensorImpl());
    parameters.push_back(
        {parameter.tensor, known == facts.ids.end() ? LossSurface::kNoParameter : known->second});
  }
  return parameters;
}

v1::RunDescription Session::Impl::run_description() const {
  auto run = std::make_unique<v1::RunDescription>();
  try {
    describe_run(run.get());
  } catch (...) {
    // A map that could not grow is not whole any more: protobuf would destroy what is not there.
    (void)run.release();
    throw;
  }
  return std::move(*run);
}

void Session::Impl::describe_run(v1::RunDescription* description) const {
  v1::RunDescription& run = *description;
  run.set_run_id(random_id());
  run.set_run_name(valid_text(options.run_name()));
  for (const std::string& tag : options.tags()) run.add_tags(valid_text(tag));
  for (const auto& [name, value] : option_texts(options))
    (*run.mutable_options())[name] = valid_text(value);
  for (const std::string& argument : command_line()) run.add_command_line(valid_text(argument));
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
  run.set_optimizer(optimizer_name(optimizers));
  run.set_seed(options.seed());
  run.set_loss_reduction(options.loss_reduction() == Reduction::mean ? "mean" : "sum");
}

}  // namespace tycho
