#include "report_builder.h"

#include <cmath>
#include <utility>

#include "decisions/rules.h"
#include "src/forwarding_handler.h"

namespace tycho::analyzer {

void SpectrumKeeper::observe(const RunContext& context, const Frame& frame, Spectrum* spectrum) {
  if (node_ == kNoColumn) {
    node_ = context.column("spectral_density_node", v1::SCOPE_INDEX);
    weight_ = context.column("spectral_density_weight", v1::SCOPE_INDEX);
  }
  const ColumnValues node = frame.column(node_);
  const ColumnValues weight = frame.column(weight_);
  if (!node.present || !weight.present) return;
  spectrum->step = frame.step();
  spectrum->node.clear();
  spectrum->weight.clear();
  for (size_t i = 0; i < node.size; ++i) {
    if (!std::isfinite(node[i]) || !std::isfinite(weight[i]) || weight[i] < 0) continue;
    spectrum->node.push_back(node[i]);
    spectrum->weight.push_back(weight[i]);
  }
}

/// Findings are of no use to the engine.
class ReportBuilder::Listening : public ForwardingHandler {
 public:
  Listening(trace::MessageHandler* next, VerdictTimes* times)
      : ForwardingHandler(next), times_(times) {}
  bool on_finding(const v1::Finding& finding, int64_t) override {
    times_->observe(finding);
    return true;
  }

 private:
  VerdictTimes* times_;
};

ReportBuilder::ReportBuilder(const std::string& path, bool keep_series,
                             LiveJudge::Listener listener)
    : keep_series_(keep_series) {
  if (listener) {
    judge_ = std::make_unique<LiveJudge>(std::move(listener));
    handler_ = std::make_unique<Listening>(judge_.get(), &report_.verdict_times);
  } else {
    engine_ = std::make_unique<Engine>();
    handler_ = std::make_unique<Listening>(engine_.get(), &report_.verdict_times);
  }
  report_.path = path;
  if (keep_series_) incidents_.emplace();
  for (const auto& law : make_laws()) report_.laws.push_back(law->description());
  add_consumer([this](const RunContext& context, const Frame& frame) {
    if (keep_series_) report_.series.observe(context, frame);
    report_.loss.observe(context, frame);
    if (incidents_) incidents_->observe(context, frame, report_.loss);
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
      report_.settings = *frame.optimizer();
      settings_version_ = frame.optimizer_version();
    }
    spectrum_.observe(context, frame, &report_.spectrum);
  });
}

void ReportBuilder::add_consumer(const Engine::FrameConsumer& consumer) {
  judge_ != nullptr ? judge_->add_consumer(consumer) : engine_->add_consumer(consumer);
}

void ReportBuilder::finish() {
  judge_ != nullptr ? judge_->finish() : engine_->finish();
  ended_ = true;
}

void ReportBuilder::watch_alarms() {
  if (judge_ != nullptr) return;
  alarms_ = std::make_unique<AlarmWatch>();
  add_consumer([this](const RunContext& context, const Frame& frame) {
    ended_ = false;
    alarms_->observe(context, frame, engine_->health(), [](const Alarm&, bool) {});
  });
}

std::vector<Alarm> ReportBuilder::alarms() const {
  if (alarms_ != nullptr) return alarms_->raised();
  std::vector<Alarm> raised;
  if (judge_ == nullptr) return raised;
  for (LiveFinding& finding : judge_->last_findings()) {
    if (!finding.is_alarm()) continue;
    raised.push_back({std::move(finding.law), finding.severity, std::move(finding.scope),
                      std::move(finding.title), std::move(finding.gate), finding.window_begin,
                      finding.measured});
  }
  return raised;
}

void ReportBuilder::drop_series() {
  keep_series_ = false;
  report_.series = SeriesStore();
  incidents_.reset();
  report_.incidents.clear();
}

void ReportBuilder::update(const v1::RunDescription& run, const v1::ModelDescription& model,
                           const v1::StatisticRegistry& registry,
                           std::vector<trace::SegmentInfo> segments,
                           std::vector<trace::SkippedRegion> skipped) {
  report_.series.finish();
  report_.run = run;
  report_.model = model;
  report_.registry = registry;
  report_.segments = std::move(segments);
  report_.skipped = std::move(skipped);
  report_.findings = engine().findings();
  report_.events = engine().events();
  report_.other_reference = engine().ignored().other_reference;
  report_.health = engine().health();
  report_.first_step = engine().first_step();
  report_.last_step = engine().last_step();
  report_.frames = engine().frames();
  report_.bytes = 0;
  for (const auto& segment : report_.segments) report_.bytes += segment.bytes;
  if (incidents_) report_.incidents = incidents_->incidents(report_.loss);
  report_.decisions = decide(report_);
  if (alarms_ != nullptr) {
    alarms_->look(engine().context(), engine().health(), report_.findings, ended_,
                  [](const Alarm&, bool) {});
  }
}

}  // namespace tycho::analyzer
