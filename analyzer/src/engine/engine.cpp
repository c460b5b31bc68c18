#include "tycho/analyzer/engine.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <optional>
#include <utility>
#include <variant>

#include "src/engine/current_frame.h"
#include "src/engine/health_totals.h"
#include "src/engine/known_run.h"
#include "src/engine/run_ids.h"
#include "src/engine/store_column.h"
#include "src/statistics/false_discoveries.h"

namespace tycho::analyzer {
namespace {

constexpr const char* kAfterStepProbe = "validation";
/// Of messages that wait for the open frame to be complete.
constexpr size_t kMostHeldBytes = size_t{1} << 20;

/// Of what was not judged no number stands beside a prediction: it would be read as a judgement.
/// Numbers that nothing is predicted for describe, and stay.
void take_back_numbers(Finding& finding) {
  const bool judged =
      finding.verdict != Verdict::kNotApplicable && finding.verdict != Verdict::kNotMeasured;
  if (judged || std::isnan(finding.predicted)) return;
  finding.measured = finding.predicted = finding.ci_low = finding.ci_high = kUnknown;
  finding.p_value = finding.evidence_level = kUnknown;
}

}  // namespace

/// When a frame begins and is complete, what counts from which frame on, and who is told.
struct Engine::Impl {
  explicit Impl(std::vector<std::unique_ptr<Law>> laws) : laws(std::move(laws)) {}

  void begin_laws() {
    for (const auto& law : laws) law->begin(run);
  }
  void open_frame(int64_t step, bool after_step = false);
  void complete_frame();
  void store(const v1::Record& record) {
    for (const v1::Column& column : record.column()) {
      store_column(column, ids, frame.number(), &run, &ignored);
    }
  }
  /// A live run's frame of that step is complete, a trace's is not yet known to be: in both the
  /// record is shown behind it.
  void take_after_step(const v1::Record& record);
  void show_after_step(const v1::Record& record);
  void apply(const v1::Event& event) { run.add_event(ids.translated(event)); }
  void apply(const v1::Health& message) { health.apply(message); }
  void apply(const v1::ModelStructure& structure) {
    run.set_structure(ids.translated(structure));
    context_changed = true;
  }
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

  KnownRun run;
  RunIds ids;
  CurrentFrame frame{run};
  HealthTotals health;
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

  std::vector<std::variant<v1::Event, v1::Health>> held;
  size_t held_bytes = 0;
  std::optional<v1::ModelStructure> held_structure;
};

void Engine::Impl::open_frame(int64_t step, bool after_step) {
  frame.begin(step, after_step);
  frame_open = true;
  while (!settings_to_come.empty() && settings_to_come.front()->step() <= step) {
    frame.adopt(std::move(settings_to_come.front()));
    settings_to_come.pop_front();
  }
}

void Engine::Impl::complete_frame() {
  if (!frame_open) return;
  frame_open = false;
  newest_complete_step = frame.step();
  if (context_changed) {
    context_changed = false;
    begin_laws();
  }
  ++frames;
  if (frames == 1 || frame.step() < first_step) first_step = frame.step();
  if (frames == 1 || frame.step() > last_step) last_step = frame.step();
  for (const auto& law : laws) law->observe(frame);
  for (const FrameConsumer& consumer : consumers) consumer(run, frame);
  apply_held();
  // What became known behind the last record counts though no other frame may come.
  if (std::exchange(context_changed, false)) begin_laws();
  if (after_step) show_after_step(*std::exchange(after_step, std::nullopt));
}

void Engine::Impl::take_after_step(const v1::Record& record) {
  if (record.step() < (frame_open ? frame.step() : newest_complete_step)) {
    ++ignored.late;
  } else if (frame_open && record.step() == frame.step()) {
    after_step = record;
  } else {
    complete_frame();
    show_after_step(record);
  }
}

void Engine::Impl::show_after_step(const v1::Record& record) {
  open_frame(record.step(), /*after_step=*/true);
  store(record);
  frame_open = false;
  newest_complete_step = record.step();
  for (const FrameConsumer& consumer : consumers) consumer(run, frame);
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
  const v1::RunDescription& known = impl.run.run();
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
  impl.run.set_run(run);
  impl.ids.merge_model(model, &impl.run);
  // A session that goes back to the start has the run's reference; one whose model has changed
  // since its last segment has not.
  const bool resumed = (info.resumed || run.resumed()) && !same_session;
  const bool changed = !info.resumed && described != impl.described;
  impl.described = std::move(described);
  impl.registered = std::move(registered);
  const bool continues =
      impl.first_step >= 0 && (changed || (resumed && run.resume_step() > impl.first_step));
  impl.ids.merge_registry(registry, continues, &impl.run);
  impl.context_changed = true;
  if (resumed) {
    // A resumed session may go back: its steps replace those that the reader left out.
    impl.newest_complete_step = std::numeric_limits<int64_t>::min();
    impl.settings_to_come.clear();
    impl.health.end_session();
  }
  return true;
}

bool Engine::on_record(const std::string& probe, const v1::Record& record, int64_t) {
  Impl& impl = *impl_;
  if (probe == kAfterStepProbe) {
    impl.take_after_step(record);
    return true;
  }
  if (!impl.frame_open || record.step() != impl.frame.step()) {
    const int64_t newest = impl.frame_open ? impl.frame.step() : impl.newest_complete_step;
    const bool late = impl.frame_open ? record.step() < newest : record.step() <= newest;
    if (late) {
      ++impl.ignored.late;
      return true;
    }
    impl.complete_frame();
    impl.open_frame(record.step());
  }
  impl.apply_held();
  impl.store(record);
  return true;
}

bool Engine::on_optimizer(const v1::OptimizerSettings& settings, int64_t) {
  Impl& impl = *impl_;
  auto translated = std::make_shared<const v1::OptimizerSettings>(impl.ids.translated(settings));
  const bool concerns_open_frame = impl.frame_open && settings.step() <= impl.frame.step();
  if (concerns_open_frame) {
    impl.frame.adopt(std::move(translated));
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

bool Engine::on_skipped(const trace::SkippedRegion&) { return true; }

void Engine::finish() {
  impl_->complete_frame();
  // What came when no frame was open counts, too, whether it was finished before that or not.
  if (std::exchange(impl_->context_changed, false)) impl_->begin_laws();
}

const RunContext& Engine::context() const { return impl_->run; }

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

const std::vector<v1::Event>& Engine::events() const { return impl_->run.events(); }
const v1::Health& Engine::health() const { return impl_->health.total(); }
int64_t Engine::first_step() const { return impl_->first_step; }
int64_t Engine::last_step() const { return impl_->last_step; }
uint64_t Engine::frames() const { return impl_->frames; }
const IgnoredRecords& Engine::ignored() const { return impl_->ignored; }

}  // namespace tycho::analyzer
