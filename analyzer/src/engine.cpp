#include "tycho/analyzer/engine.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <variant>

#include "src/statistics/false_discoveries.h"

namespace tycho::analyzer {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr uint32_t kNoEntity = std::numeric_limits<uint32_t>::max();
/// Statistic ids come from a file: a table indexed by them must not be as large as a hostile id.
constexpr uint32_t kLargestStatisticId = 1u << 16;
constexpr size_t kScopes = 5;
/// Positions of a list come from a file too: no list is longer.
constexpr uint32_t kLongestList = 4096;
constexpr const char* kAfterStepProbe = "validation";
constexpr size_t kMostEvents = 4096;
/// Of messages that wait for the open frame to be complete.
constexpr size_t kMostHeldBytes = size_t{1} << 20;

/// Values of one column at the current frame.
struct ColumnStore {
  std::string statistic;
  v1::Scope scope = v1::SCOPE_RUN;
  std::vector<double> value;
  std::vector<double> standard_error;
  uint64_t value_frame = 0;           ///< frame that `value` belongs to; 0: none
  uint64_t standard_error_frame = 0;  ///< frame that `standard_error` belongs to; 0: none
};

class Context : public RunContext {
 public:
  const v1::RunDescription& run() const override { return run_; }
  const v1::ModelDescription& model() const override { return model_; }
  const v1::StatisticRegistry& registry() const override { return registry_; }
  const v1::ModelStructure* structure() const override {
    return has_structure_ ? &structure_ : nullptr;
  }

  const std::vector<v1::Event>& events() const override { return events_; }

  bool recorded(const std::string& statistic) const override {
    return std::any_of(columns_.begin(), columns_.end(), [&](const ColumnStore& store) {
      return store.value_frame > 0 && store.statistic == statistic;
    });
  }

  ColumnIndex column(const std::string& statistic, v1::Scope scope) const override {
    const auto [found, inserted] =
        column_of_.try_emplace(std::make_pair(statistic, static_cast<int>(scope)),
                               static_cast<ColumnIndex>(columns_.size()));
    if (inserted) {
      columns_.emplace_back();
      columns_.back().statistic = statistic;
      columns_.back().scope = scope;
    }
    return found->second;
  }

  /// 0 at scope index, where every step says its own length.
  size_t entities(v1::Scope scope) const {
    switch (scope) {
      case v1::SCOPE_LAYER:
        return static_cast<size_t>(model_.layer_size());
      case v1::SCOPE_PARAMETER:
        return static_cast<size_t>(model_.parameter_size());
      case v1::SCOPE_INDEX:
        return 0;
      default:
        return 1;
    }
  }

  v1::RunDescription run_;
  v1::ModelDescription model_;
  v1::StatisticRegistry registry_;
  v1::ModelStructure structure_;
  bool has_structure_ = false;
  std::vector<v1::Event> events_;
  // A law may ask for a column at any time, and asking does not change what the run is.
  mutable std::deque<ColumnStore> columns_;
  mutable std::map<std::pair<std::string, int>, ColumnIndex> column_of_;
};

class CurrentFrame : public Frame {
 public:
  explicit CurrentFrame(const Context& context) : context_(context) {}

  int64_t step() const override { return step_; }
  bool is_after_step() const override { return after_step_; }
  const v1::OptimizerSettings* optimizer() const override { return optimizer_.get(); }
  uint64_t optimizer_version() const override { return optimizer_version_; }

  ColumnValues column(ColumnIndex index) const override {
    ColumnValues values;
    if (index < 0 || static_cast<size_t>(index) >= context_.columns_.size()) return values;
    const ColumnStore& store = context_.columns_[static_cast<size_t>(index)];
    if (store.value_frame != number_) return values;
    values.value = store.value.data();
    values.size = store.value.size();
    values.present = true;
    if (store.standard_error_frame == number_) values.standard_error = store.standard_error.data();
    return values;
  }

  const Context& context_;
  int64_t step_ = -1;
  bool after_step_ = false;
  uint64_t number_ = 0;
  std::shared_ptr<const v1::OptimizerSettings> optimizer_;
  uint64_t optimizer_version_ = 0;
};

/// Finds or appends `name`; returns its index. `index_of` is the index of what is there already.
uint32_t intern(std::map<std::string, uint32_t>& index_of, const std::string& name, bool& added) {
  const auto [found, inserted] = index_of.try_emplace(name, static_cast<uint32_t>(index_of.size()));
  added = inserted;
  return found->second;
}

uint32_t translate(const std::vector<uint32_t>& table, uint32_t id) {
  return id < table.size() ? table[id] : kNoEntity;
}

/// Of what was not judged no number stands beside a prediction: it would be read as a judgement.
/// Numbers that nothing is predicted for describe, and stay.
void take_back_numbers(Finding& finding) {
  const bool judged =
      finding.verdict != Verdict::kNotApplicable && finding.verdict != Verdict::kNotMeasured;
  if (judged || std::isnan(finding.predicted)) return;
  finding.measured = finding.predicted = finding.ci_low = finding.ci_high = kUnknown;
  finding.p_value = finding.evidence_level = kUnknown;
}

bool is_identity(const std::vector<uint32_t>& table) {
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i] != i) return false;
  }
  return true;
}

}  // namespace

struct Engine::Impl {
  explicit Impl(std::vector<std::unique_ptr<Law>> laws) : frame(context), laws(std::move(laws)) {}

  void merge_model(const v1::ModelDescription& model);
  /// `continues`: the segment is of a session that took up the run where it already had a past.
  void merge_registry(const v1::StatisticRegistry& registry, bool continues);
  void fold_health();
  void accept(const v1::Column& column);
  void begin_laws() {
    for (const auto& law : laws) law->begin(context);
  }
  void complete_frame();
  void take_after_step(const v1::Record& record);
  void show_after_step(const v1::Record& record);
  void apply(const v1::Event& event);
  void apply(const v1::Health& health);
  void apply(const v1::ModelStructure& structure);
  /// What comes while a frame is open is applied before the next record of its step, or else behind
  /// the frame: so it does not matter when it becomes known that the frame is complete.
  template <typename Message>
  void hold(const Message& message) {
    if (!frame_open) return apply(message);
    const size_t size = message.ByteSizeLong() + sizeof(Message);
    if (held_bytes + size > kMostHeldBytes) apply_held();
    held.emplace_back(message);
    held_bytes += size;
  }
  void apply_held();
  void open_frame(int64_t step);
  void adopt_settings(std::shared_ptr<const v1::OptimizerSettings> settings);

  Context context;
  CurrentFrame frame;
  std::vector<std::unique_ptr<Law>> laws;
  std::vector<FrameConsumer> consumers;

  bool begun = false;  // there was a segment
  bool frame_open = false;
  bool context_changed = true;
  uint64_t frames = 0;
  int64_t first_step = -1;
  int64_t last_step = -1;
  int64_t newest_complete_step = std::numeric_limits<int64_t>::min();
  std::optional<v1::Record> after_step;  // of the open frame's step
  std::deque<std::shared_ptr<const v1::OptimizerSettings>> settings_to_come;
  IgnoredRecords ignored;

  // Of the segment before, as they stand there.
  std::string described;
  std::string registered;
  // Of the current segment: its ids in terms of the run's.
  std::vector<uint32_t> layer_of;
  std::vector<uint32_t> parameter_of;
  bool layers_identical = true;
  bool parameters_identical = true;
  std::vector<ColumnIndex> column_of;  // [statistic id * kScopes + scope]
  std::vector<bool> other_reference;   // [statistic id]

  std::map<std::string, uint32_t> layer_index;
  std::map<std::string, uint32_t> parameter_index;
  std::map<std::string, uint32_t> statistic_index;

  std::map<std::tuple<std::string, int, uint32_t>, size_t> event_index;
  std::vector<std::variant<v1::Event, v1::Health>> held;
  size_t held_bytes = 0;
  std::optional<v1::ModelStructure> held_structure;

  v1::Health health;          // what is shown
  v1::Health past_sessions;   // totals of sessions that ended
  v1::Health session_totals;  // last totals of the session being read
  std::map<std::string, v1::ProbeCost> probe_cost;
};

void Engine::Impl::merge_model(const v1::ModelDescription& model) {
  layer_of.assign(static_cast<size_t>(model.layer_size()), kNoEntity);
  parameter_of.assign(static_cast<size_t>(model.parameter_size()), kNoEntity);
  bool added = false;
  for (int i = 0; i < model.layer_size(); ++i) {
    const uint32_t id = intern(layer_index, model.layer(i).path(), added);
    layer_of[static_cast<size_t>(i)] = id;
    if (added) context.model_.add_layer();
  }
  for (int i = 0; i < model.parameter_size(); ++i) {
    const uint32_t id = intern(parameter_index, model.parameter(i).name(), added);
    parameter_of[static_cast<size_t>(i)] = id;
    if (added) context.model_.add_parameter();
  }
  // What the newest segment says about a layer or parameter is what it is now.
  for (int i = 0; i < model.layer_size(); ++i) {
    v1::Layer layer = model.layer(i);
    const uint32_t id = layer_of[static_cast<size_t>(i)];
    layer.set_id(id);
    layer.clear_parameter();
    for (const uint32_t parameter : model.layer(i).parameter()) {
      const uint32_t mapped = translate(parameter_of, parameter);
      if (mapped != kNoEntity) layer.add_parameter(mapped);
    }
    *context.model_.mutable_layer(static_cast<int>(id)) = std::move(layer);
  }
  for (int i = 0; i < model.parameter_size(); ++i) {
    v1::Parameter parameter = model.parameter(i);
    const uint32_t id = parameter_of[static_cast<size_t>(i)];
    parameter.set_id(id);
    const uint32_t layer = translate(layer_of, parameter.layer());
    parameter.set_layer(layer == kNoEntity ? 0 : layer);
    *context.model_.mutable_parameter(static_cast<int>(id)) = std::move(parameter);
  }
  layers_identical = is_identity(layer_of);
  parameters_identical = is_identity(parameter_of);
}

void Engine::Impl::merge_registry(const v1::StatisticRegistry& registry, bool continues) {
  column_of.clear();
  other_reference.clear();
  for (const v1::StatisticDefinition& definition : registry.statistic()) {
    if (definition.id() > kLargestStatisticId) continue;
    bool added = false;
    const uint32_t id = intern(statistic_index, definition.name(), added);
    if (added) {
      *context.registry_.add_statistic() = definition;
      context.registry_.mutable_statistic(static_cast<int>(id))->set_id(id);
    } else {
      v1::StatisticDefinition* known = context.registry_.mutable_statistic(static_cast<int>(id));
      for (const int scope : definition.scope()) {
        const auto& scopes = known->scope();
        if (std::find(scopes.begin(), scopes.end(), scope) == scopes.end()) {
          known->add_scope(static_cast<v1::Scope>(scope));
        }
      }
    }
    const size_t slot = definition.id();
    if (column_of.size() <= slot * kScopes) column_of.resize((slot + 1) * kScopes, kNoColumn);
    bool measured_before = false;
    for (const v1::Scope scope :
         {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER, v1::SCOPE_INDEX}) {
      const ColumnIndex column = context.column(definition.name(), scope);
      column_of[slot * kScopes + static_cast<size_t>(scope)] = column;
      if (column == kNoColumn) continue;
      measured_before |= context.columns_[static_cast<size_t>(column)].value_frame > 0;
    }
    if (other_reference.size() <= slot) other_reference.resize(slot + 1);
    other_reference[slot] = continues && definition.since_first_observation() && measured_before;
  }
}

void Engine::Impl::fold_health() {
  health.set_messages_written(past_sessions.messages_written() + session_totals.messages_written());
  health.set_messages_dropped(past_sessions.messages_dropped() + session_totals.messages_dropped());
  health.set_bytes_written(past_sessions.bytes_written() + session_totals.bytes_written());
  health.set_write_failures(past_sessions.write_failures() + session_totals.write_failures());
  health.set_steps_seen(past_sessions.steps_seen() + session_totals.steps_seen());
  health.set_steps_observed(past_sessions.steps_observed() + session_totals.steps_observed());
  health.set_training_seconds(past_sessions.training_seconds() + session_totals.training_seconds());
  health.set_tycho_seconds(past_sessions.tycho_seconds() + session_totals.tycho_seconds());
  health.set_process_cpu_seconds(past_sessions.process_cpu_seconds() +
                                 session_totals.process_cpu_seconds());
  health.set_tycho_cpu_seconds(past_sessions.tycho_cpu_seconds() +
                               session_totals.tycho_cpu_seconds());
  health.set_hook_seconds(past_sessions.hook_seconds() + session_totals.hook_seconds());
  health.set_slowdown_seconds(past_sessions.slowdown_seconds() + session_totals.slowdown_seconds());
  health.set_cost_is_lower_bound(past_sessions.cost_is_lower_bound() ||
                                 session_totals.cost_is_lower_bound());
}

void Engine::Impl::accept(const v1::Column& column) {
  const size_t slot = static_cast<size_t>(column.statistic()) * kScopes;
  const auto scope = static_cast<size_t>(column.scope());
  if (scope == 0 || scope >= kScopes) {
    ++ignored.malformed;
    return;
  }
  if (slot + scope >= column_of.size() || column_of[slot + scope] == kNoColumn) {
    ++ignored.unknown_statistic;
    return;
  }
  if (column.statistic() < other_reference.size() && other_reference[column.statistic()]) {
    ++ignored.other_reference;
    return;
  }
  const bool run_scope = column.scope() == v1::SCOPE_RUN;
  const int count = column.value_size();
  const bool has_error = column.standard_error_size() > 0;
  const bool lengths_agree =
      (run_scope ? count == 1 && column.entity_size() <= 1 : count == column.entity_size()) &&
      (!has_error || column.standard_error_size() == count);
  if (!lengths_agree) {
    ++ignored.malformed;
    return;
  }
  ColumnStore& store = context.columns_[static_cast<size_t>(column_of[slot + scope])];
  const size_t size = context.entities(store.scope);
  const bool is_layer = column.scope() == v1::SCOPE_LAYER;
  const uint32_t* entity = column.entity().data();
  const double* value = column.value().data();
  const double* error = has_error ? column.standard_error().data() : nullptr;
  // The common case, all entities in order, is a copy.
  bool dense = !run_scope && size > 0 && static_cast<size_t>(count) == size &&
               (is_layer ? layers_identical : parameters_identical);
  if (dense) {
    uint32_t difference = 0;
    for (uint32_t i = 0; i < static_cast<uint32_t>(count); ++i) difference |= entity[i] ^ i;
    dense = difference == 0;
  }
  if (dense) {
    store.value.assign(value, value + count);
    store.value_frame = frame.number_;
    if (has_error) {
      store.standard_error.assign(error, error + count);
      store.standard_error_frame = frame.number_;
    }
    return;
  }
  if (store.value_frame != frame.number_) {
    store.value.assign(size, not_measured());
    store.value_frame = frame.number_;
  }
  if (has_error && store.standard_error_frame != frame.number_) {
    store.standard_error.assign(size, kNan);
    store.standard_error_frame = frame.number_;
  }
  if (run_scope) {
    store.value[0] = column.value(0);
    if (has_error) store.standard_error[0] = column.standard_error(0);
    return;
  }
  bool complete = true;
  if (column.scope() == v1::SCOPE_INDEX) {
    for (int i = 0; i < count; ++i) {
      if (entity[i] >= kLongestList) {
        complete = false;
        continue;
      }
      const size_t length = size_t{entity[i]} + 1;
      if (store.value.size() < length) store.value.resize(length, not_measured());
      store.value[entity[i]] = value[i];
      if (error == nullptr) continue;
      if (store.standard_error.size() < length) store.standard_error.resize(length, kNan);
      store.standard_error[entity[i]] = error[i];
    }
    store.standard_error.resize(store.value.size(), kNan);
    if (!complete) ++ignored.malformed;
    return;
  }
  const std::vector<uint32_t>& table = is_layer ? layer_of : parameter_of;
  for (int i = 0; i < count; ++i) {
    if (entity[i] >= table.size()) {
      complete = false;
      continue;
    }
    const uint32_t target = table[entity[i]];
    store.value[target] = value[i];
    if (error != nullptr) store.standard_error[target] = error[i];
  }
  if (!complete) ++ignored.malformed;
}

void Engine::Impl::adopt_settings(std::shared_ptr<const v1::OptimizerSettings> settings) {
  frame.optimizer_ = std::move(settings);
  ++frame.optimizer_version_;
}

void Engine::Impl::open_frame(int64_t step) {
  frame.step_ = step;
  frame.after_step_ = false;
  ++frame.number_;
  frame_open = true;
  while (!settings_to_come.empty() && settings_to_come.front()->step() <= step) {
    adopt_settings(std::move(settings_to_come.front()));
    settings_to_come.pop_front();
  }
}

void Engine::Impl::complete_frame() {
  if (!frame_open) return;
  frame_open = false;
  newest_complete_step = frame.step_;
  if (context_changed) {
    context_changed = false;
    begin_laws();
  }
  ++frames;
  if (frames == 1 || frame.step_ < first_step) first_step = frame.step_;
  if (frames == 1 || frame.step_ > last_step) last_step = frame.step_;
  for (const auto& law : laws) law->observe(frame);
  for (const FrameConsumer& consumer : consumers) consumer(context, frame);
  apply_held();
  // What became known behind the last record counts though no other frame may come.
  if (std::exchange(context_changed, false)) begin_laws();
  if (after_step) show_after_step(*std::exchange(after_step, std::nullopt));
}

/// In a live run the frame of its step is complete, in a trace it is not yet known to be: in both
/// it is shown behind that.
void Engine::Impl::take_after_step(const v1::Record& record) {
  if (record.step() < (frame_open ? frame.step_ : newest_complete_step)) {
    ++ignored.late;
  } else if (frame_open && record.step() == frame.step_) {
    after_step = record;
  } else {
    complete_frame();
    show_after_step(record);
  }
}

void Engine::Impl::show_after_step(const v1::Record& record) {
  open_frame(record.step());
  for (const v1::Column& column : record.column()) accept(column);
  frame_open = false;
  frame.after_step_ = true;
  newest_complete_step = record.step();
  for (const FrameConsumer& consumer : consumers) consumer(context, frame);
}

void Engine::Impl::apply_held() {
  held_bytes = 0;
  for (const auto& message : std::exchange(held, {}))
    std::visit([this](const auto& each) { apply(each); }, message);
  if (held_structure) apply(*std::exchange(held_structure, std::nullopt));
}

Engine::Engine(std::vector<std::unique_ptr<Law>> laws)
    : impl_(std::make_unique<Impl>(std::move(laws))) {
  // A run without one step has findings too.
  impl_->begin_laws();
}
Engine::~Engine() = default;

void Engine::add_consumer(FrameConsumer consumer) {
  impl_->consumers.push_back(std::move(consumer));
}

bool Engine::on_segment(const trace::SegmentInfo& info, const v1::RunDescription& run,
                        const v1::ModelDescription& model, const v1::StatisticRegistry& registry) {
  Impl& impl = *impl_;
  const v1::RunDescription& known = impl.context.run_;
  const bool same_session = impl.begun && !info.resumed && known.run_id() == run.run_id() &&
                            known.start_time_ns() == run.start_time_ns() &&
                            known.resumed() == run.resumed() &&
                            known.resume_step() == run.resume_step();
  std::string described = model.SerializeAsString();
  std::string registered = registry.SerializeAsString();
  // A segment that was opened for its size says nothing new, not even that a step is complete.
  if (same_session && described == impl.described && registered == impl.registered) return true;
  impl.complete_frame();
  impl.begun = true;
  impl.context.run_ = run;
  impl.merge_model(model);
  // A session that goes back to the start has the run's reference; one whose model has changed
  // since its last segment has not.
  const bool resumed = (info.resumed || run.resumed()) && !same_session;
  const bool changed = !info.resumed && described != impl.described;
  impl.described = std::move(described);
  impl.registered = std::move(registered);
  impl.merge_registry(registry, impl.first_step >= 0 &&
                                    (changed || (resumed && run.resume_step() > impl.first_step)));
  impl.context_changed = true;
  if (resumed) {
    // A resumed session may go back: its steps replace those that the reader left out.
    impl.newest_complete_step = std::numeric_limits<int64_t>::min();
    impl.settings_to_come.clear();
    impl.fold_health();
    impl.past_sessions = impl.health;
    impl.session_totals.Clear();
  }
  return true;
}

bool Engine::on_record(const std::string& probe, const v1::Record& record, int64_t) {
  Impl& impl = *impl_;
  if (probe == kAfterStepProbe) {
    impl.take_after_step(record);
    return true;
  }
  if (!impl.frame_open || record.step() != impl.frame.step_) {
    const int64_t newest = impl.frame_open ? impl.frame.step_ : impl.newest_complete_step;
    const bool late = impl.frame_open ? record.step() < newest : record.step() <= newest;
    if (late) {
      ++impl.ignored.late;
      return true;
    }
    impl.complete_frame();
    impl.open_frame(record.step());
  }
  impl.apply_held();
  for (const v1::Column& column : record.column()) impl.accept(column);
  return true;
}

bool Engine::on_optimizer(const v1::OptimizerSettings& settings, int64_t) {
  Impl& impl = *impl_;
  auto translated = std::make_shared<v1::OptimizerSettings>(settings);
  if (!impl.parameters_identical) {
    for (int g = 0; g < translated->group_size(); ++g) {
      v1::ParameterGroup* group = translated->mutable_group(g);
      group->clear_parameter();
      for (const uint32_t parameter : settings.group(g).parameter()) {
        const uint32_t mapped = translate(impl.parameter_of, parameter);
        if (mapped != kNoEntity) group->add_parameter(mapped);
      }
    }
  }
  const bool concerns_open_frame = impl.frame_open && settings.step() <= impl.frame.step_;
  if (concerns_open_frame) {
    impl.adopt_settings(std::move(translated));
  } else {
    impl.settings_to_come.push_back(std::move(translated));
    // Settings without records in between: only the newest that are in force by the next frame
    // matter.
    constexpr size_t kMostSettingsToCome = 1024;
    if (impl.settings_to_come.size() > kMostSettingsToCome) impl.settings_to_come.pop_front();
  }
  return true;
}

bool Engine::on_event(const v1::Event& event, int64_t) {
  impl_->hold(event);
  return true;
}

bool Engine::on_health(const v1::Health& health, int64_t) {
  impl_->hold(health);
  return true;
}

bool Engine::on_structure(const v1::ModelStructure& structure, int64_t) {
  if (impl_->frame_open) {
    impl_->held_structure = structure;
  } else {
    impl_->apply(structure);
  }
  return true;
}

void Engine::Impl::apply(const v1::Event& event) {
  v1::Event translated = event;
  if (event.scope() == v1::SCOPE_LAYER) {
    translated.set_entity(translate(layer_of, event.entity()));
  } else if (event.scope() == v1::SCOPE_PARAMETER) {
    translated.set_entity(translate(parameter_of, event.entity()));
  }
  const auto key =
      std::make_tuple(event.code(), static_cast<int>(event.scope()), translated.entity());
  const auto found = event_index.find(key);
  if (found != event_index.end()) {
    v1::Event& known = context.events_[found->second];
    known.set_count(std::max(known.count(), event.count()));
    return;
  }
  if (context.events_.size() >= kMostEvents) return;
  event_index.emplace(key, context.events_.size());
  context.events_.push_back(std::move(translated));
}

void Engine::Impl::apply(const v1::Health& message) {
  for (const v1::ProbeCost& cost : message.cost()) {
    v1::ProbeCost& total = probe_cost[cost.probe()];
    total.set_probe(cost.probe());
    total.set_seconds(total.seconds() + cost.seconds());
    total.set_observations(total.observations() + cost.observations());
  }
  session_totals = message;
  health.clear_cost();
  for (const auto& [name, cost] : probe_cost) *health.add_cost() = cost;
  health.set_step(message.step());
  if (!message.last_write_failure().empty()) {
    health.set_last_write_failure(message.last_write_failure());
  }
  fold_health();
}

void Engine::Impl::apply(const v1::ModelStructure& structure) {
  v1::ModelStructure& target = context.structure_;
  target.Clear();
  for (const v1::SymmetryGroup& group : structure.symmetry_group()) {
    v1::SymmetryGroup* copy = target.add_symmetry_group();
    *copy = group;
    copy->clear_parameter();
    for (const uint32_t parameter : group.parameter()) {
      const uint32_t mapped = translate(parameter_of, parameter);
      if (mapped != kNoEntity) copy->add_parameter(mapped);
    }
  }
  for (const v1::LayerEdge& edge : structure.edge()) {
    const uint32_t from = translate(layer_of, edge.from());
    const uint32_t to = translate(layer_of, edge.to());
    if (from == kNoEntity || to == kNoEntity) continue;
    v1::LayerEdge* copy = target.add_edge();
    *copy = edge;
    copy->set_from(from);
    copy->set_to(to);
  }
  for (const v1::LayerFact& fact : structure.fact()) {
    const uint32_t layer = translate(layer_of, fact.layer());
    if (layer == kNoEntity) continue;
    v1::LayerFact* copy = target.add_fact();
    *copy = fact;
    copy->set_layer(layer);
  }
  context.has_structure_ = true;
  context_changed = true;
}

bool Engine::on_skipped(const trace::SkippedRegion&) { return true; }

void Engine::finish() {
  impl_->complete_frame();
  // What came when no frame was open counts, too, whether it was finished before that or not.
  if (std::exchange(impl_->context_changed, false)) impl_->begin_laws();
}

const RunContext& Engine::context() const { return impl_->context; }

std::vector<Finding> Engine::findings() const {
  std::vector<Finding> all;
  for (const auto& law : impl_->laws) {
    std::vector<Finding> findings = law->findings();
    std::vector<Finding*> parts;
    for (Finding& finding : findings) {
      if (finding.scope != "run") parts.push_back(&finding);
    }
    control_false_discoveries(parts);
    for (Finding& finding : findings) take_back_numbers(finding);
    for (Finding& finding : findings) all.push_back(std::move(finding));
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Finding& a, const Finding& b) { return a.importance > b.importance; });
  return all;
}

const std::vector<v1::Event>& Engine::events() const { return impl_->context.events_; }
const v1::Health& Engine::health() const { return impl_->health; }
int64_t Engine::first_step() const { return impl_->first_step; }
int64_t Engine::last_step() const { return impl_->last_step; }
uint64_t Engine::frames() const { return impl_->frames; }
const IgnoredRecords& Engine::ignored() const { return impl_->ignored; }

std::string RunContext::scope_name(v1::Scope scope, uint32_t entity) const {
  if (scope == v1::SCOPE_LAYER && entity < static_cast<uint32_t>(model().layer_size())) {
    return "layer:" + model().layer(static_cast<int>(entity)).path();
  }
  if (scope == v1::SCOPE_PARAMETER && entity < static_cast<uint32_t>(model().parameter_size())) {
    return "param:" + model().parameter(static_cast<int>(entity)).name();
  }
  if (scope == v1::SCOPE_INDEX) return "index:" + std::to_string(entity);
  return "run";
}

}  // namespace tycho::analyzer
