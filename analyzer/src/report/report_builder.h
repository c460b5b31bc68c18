#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "report.h"
#include "src/incident/incident_watch.h"
#include "src/live/alarm_watch.h"
#include "tycho/analyzer/engine.h"
#include "tycho/analyzer/live_judge.h"

namespace tycho::analyzer {

/// Keeps the last spectral density of the Hessian.
class SpectrumKeeper {
 public:
  void observe(const RunContext& context, const Frame& frame, Spectrum* spectrum);

 private:
  ColumnIndex node_ = kNoColumn;
  ColumnIndex weight_ = kNoColumn;
};

/// A Report as the messages of a run come: at once, or while the run is written. Memory as that of
/// Engine and, with series, of SeriesStore. One thread at a time.
class ReportBuilder {
 public:
  /// Without series: no charts, no order of events, and no remark that rests on them (dead units).
  /// With a listener, a LiveJudge takes the messages and tells it what it says.
  explicit ReportBuilder(const std::string& path, bool keep_series = true,
                         LiveJudge::Listener listener = nullptr);
  ReportBuilder(const ReportBuilder&) = delete;
  ReportBuilder& operator=(const ReportBuilder&) = delete;

  /// Takes the messages.
  trace::MessageHandler& handler() { return *handler_; }
  const Engine& engine() const { return judge_ != nullptr ? judge_->engine() : *engine_; }
  /// Called with each complete frame.
  void add_consumer(const Engine::FrameConsumer& consumer);
  /// Completes the last frame.
  void finish();
  /// Before the first message, where there is no listener: watches for alarms.
  void watch_alarms();
  /// Alarms that are raised: with a listener those of the LiveJudge, which looks at the laws now
  /// and then; with watch_alarms() those at the last update(); else none.
  std::vector<Alarm> alarms() const;
  /// Brings report() up to date with all complete frames; the last step of a run that goes on is
  /// complete when the next one has begun. Judges all laws: costs most of what a report does.
  void update(const v1::RunDescription& run, const v1::ModelDescription& model,
              const v1::StatisticRegistry& registry, std::vector<trace::SegmentInfo> segments,
              std::vector<trace::SkippedRegion> skipped);
  /// From now on without series; those there are are given up.
  void drop_series();
  /// As of the last update().
  Report& report() { return report_; }
  const Report& report() const { return report_; }

 private:
  Report report_;
  class Listening;
  // One of the two.
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<LiveJudge> judge_;
  std::unique_ptr<AlarmWatch> alarms_;
  bool ended_ = false;  ///< no frame has come since finish()
  std::unique_ptr<trace::MessageHandler> handler_;
  SpectrumKeeper spectrum_;
  std::optional<IncidentWatch> incidents_;  ///< with the series
  uint64_t settings_version_ = static_cast<uint64_t>(-1);
  bool keep_series_;
};

}  // namespace tycho::analyzer
