#include "tycho/analyzer/live_judge.h"

#include <map>
#include <utility>

#include "src/live/alarm_watch.h"

namespace tycho::analyzer {
namespace {

/// Verdicts are looked at when the frames have grown by one in so many.
constexpr uint64_t kLookGrowth = 50;

/// Nothing is known yet, which is not worth saying of what nothing was said of.
bool is_silent(Verdict verdict) {
  return verdict == Verdict::kNotYet || verdict == Verdict::kNotMeasured;
}

LiveFinding of_alarm(const Alarm& alarm, bool over, int64_t step) {
  LiveFinding finding;
  finding.kind = over ? LiveFinding::Kind::kAlarmOver : LiveFinding::Kind::kAlarm;
  finding.step = step;
  finding.severity = alarm.severity;
  finding.title = alarm.title;
  finding.law = alarm.code;
  finding.scope = alarm.scope;
  finding.verdict = over ? Verdict::kNotYet : Verdict::kViolated;
  finding.measured = alarm.value;
  finding.window_begin = alarm.step;
  finding.window_end = step;
  finding.gate = alarm.text;
  finding.alarm = alarm.code;
  finding.importance = alarm.severity == Severity::kAlarm ? 1 : 0.95;
  return finding;
}

}  // namespace

struct LiveJudge::Impl {
  Impl(Listener to, std::vector<std::unique_ptr<Law>> laws)
      : listener(std::move(to)), engine(std::move(laws)) {}

  AlarmWatch::Say alarm_said() {
    return [this](const Alarm& alarm, bool over) { to_say.push_back(of_alarm(alarm, over, step)); };
  }
  /// All that a step brought, when it is judged.
  void say() {
    if (to_say.empty()) return;
    ++version;
    const std::vector<LiveFinding> now = std::exchange(to_say, {});
    if (!listener) return;
    for (const LiveFinding& finding : now) listener(finding);
  }
  void observe(const RunContext& context, const Frame& frame);
  void look(bool last);
  std::vector<LiveFinding> all(const std::vector<Finding>& verdicts) const;

  Listener listener;
  Engine engine;
  AlarmWatch alarms;
  std::vector<Engine::FrameConsumer> consumers;
  std::map<std::pair<std::string, std::string>, Verdict> said;  // by law and scope
  std::vector<Finding> last_look;
  std::vector<LiveFinding> to_say;
  uint64_t version = 1;
  int64_t step = -1;
  uint64_t frames = 0;
  uint64_t next_look = 1;
};

void LiveJudge::Impl::observe(const RunContext& context, const Frame& frame) {
  for (const Engine::FrameConsumer& consumer : consumers) consumer(context, frame);
  step = frame.step();
  alarms.observe(context, frame, engine.health(), alarm_said());
  if (++frames >= next_look) {
    next_look = frames + 1 + frames / kLookGrowth;
    look(false);
  }
  say();
}

void LiveJudge::Impl::look(bool last) {
  ++version;
  last_look = engine.findings();
  for (const Finding& finding : last_look) {
    std::pair<std::string, std::string> key(finding.law, finding.scope);
    const auto known = said.find(key);
    if (known == said.end() ? is_silent(finding.verdict) : known->second == finding.verdict)
      continue;
    LiveFinding news;
    static_cast<Finding&>(news) = finding;
    news.step = step;
    if (known != said.end()) news.before = known->second;
    said[std::move(key)] = finding.verdict;
    to_say.push_back(std::move(news));
  }
  alarms.look(engine.context(), engine.health(), last_look, last, alarm_said());
}

std::vector<LiveFinding> LiveJudge::Impl::all(const std::vector<Finding>& verdicts) const {
  std::vector<LiveFinding> result;
  for (const Alarm& alarm : alarms.raised()) result.push_back(of_alarm(alarm, false, step));
  for (const Finding& verdict : verdicts) {
    result.emplace_back();
    static_cast<Finding&>(result.back()) = verdict;
    result.back().step = step;
    const auto known = said.find({verdict.law, verdict.scope});
    if (known != said.end()) result.back().before = known->second;
  }
  return result;
}

LiveJudge::LiveJudge(Listener listener, std::vector<std::unique_ptr<Law>> laws)
    : impl_(std::make_unique<Impl>(std::move(listener), std::move(laws))) {
  impl_->engine.add_consumer([impl = impl_.get()](const RunContext& context, const Frame& frame) {
    impl->observe(context, frame);
  });
  impl_->last_look = impl_->engine.findings();
}
LiveJudge::~LiveJudge() = default;

void LiveJudge::add_consumer(Engine::FrameConsumer consumer) {
  impl_->consumers.push_back(std::move(consumer));
}

bool LiveJudge::on_segment(const trace::SegmentInfo& info, const v1::RunDescription& run,
                           const v1::ModelDescription& model,
                           const v1::StatisticRegistry& registry) {
  return impl_->engine.on_segment(info, run, model, registry);
}

bool LiveJudge::on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) {
  return impl_->engine.on_record(probe, record, time_ns);
}

bool LiveJudge::on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) {
  return impl_->engine.on_optimizer(settings, time_ns);
}

bool LiveJudge::on_event(const v1::Event& event, int64_t time_ns) {
  return impl_->engine.on_event(event, time_ns);
}

bool LiveJudge::on_health(const v1::Health& health, int64_t time_ns) {
  return impl_->engine.on_health(health, time_ns);
}

bool LiveJudge::on_structure(const v1::ModelStructure& structure, int64_t time_ns) {
  return impl_->engine.on_structure(structure, time_ns);
}

void LiveJudge::finish_step() { impl_->engine.finish(); }

void LiveJudge::finish() {
  impl_->engine.finish();
  impl_->look(true);
  impl_->say();
}

std::vector<LiveFinding> LiveJudge::findings() const {
  return impl_->all(impl_->engine.findings());
}

std::vector<LiveFinding> LiveJudge::last_findings() const { return impl_->all(impl_->last_look); }

uint64_t LiveJudge::version() const { return impl_->version; }

const Engine& LiveJudge::engine() const { return impl_->engine; }

}  // namespace tycho::analyzer
