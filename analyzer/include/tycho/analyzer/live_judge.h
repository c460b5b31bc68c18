#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tycho/analyzer/engine.h"
#include "tycho/analyzer/live_finding.h"
#include "tycho/trace/run_reader.h"

namespace tycho::analyzer {

/// Judges a run while its records arrive: the Engine of the report, evaluated from time to time,
/// and alarms at the steps that cause them. A MessageHandler: hand it to RunReader::read, or call
/// it with the messages as they are recorded.
///
/// Its output depends only on the messages and their order, not on time, finish_step() or calls to
/// findings(): live, replayed and from a followed file it reports the same at the same steps, and
/// its findings at any step are those of a report of the trace up to there.
///
/// Verdicts are evaluated after each of the first frames, and then whenever the number of frames
/// has grown by 2 %. A verdict is reported when it is reached and when it differs from the one
/// reported last; the first report about a law at a scope is never NOT_YET or NOT_MEASURED. A law
/// that is tested many times is wrong at some point more often than at a single one: do not act on
/// the first VIOLATED.
///
/// Alarms are evaluated after every frame. At once: loss_not_finite, not_finite (gradients,
/// activations), trace_incomplete. After five consecutive observations that meet the condition: the
/// other alarms of loss_alarms(), layer_silent, updates_stopped. From laws, when these are
/// evaluated: edge_passed, batch_far_past_noise_scale. An alarm is reported when it is raised, when
/// its severity changes, and when it ends.
///
/// Memory is bounded by laws times layers and parameters. One thread at a time. The listener may
/// call findings(); it must not pass messages in.
class LiveJudge : public trace::MessageHandler {
 public:
  using Listener = std::function<void(const LiveFinding&)>;

  /// `listener` may be empty.
  explicit LiveJudge(Listener listener, std::vector<std::unique_ptr<Law>> laws = make_laws());
  ~LiveJudge() override;

  /// Adds a consumer, called with each complete frame before the judge evaluates it.
  void add_consumer(Engine::FrameConsumer consumer);

  bool on_segment(const trace::SegmentInfo&, const v1::RunDescription&, const v1::ModelDescription&,
                  const v1::StatisticRegistry&) override;
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override;
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override;
  bool on_event(const v1::Event& event, int64_t time_ns) override;
  bool on_health(const v1::Health& health, int64_t time_ns) override;
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override;

  /// All records of the newest step have arrived: it is judged now, not when the next one begins.
  /// Optional; affects only when findings are reported.
  void finish_step();
  /// The trace has ended: completes the newest step and evaluates once more.
  void finish();

  /// Everything known: active alarms, most serious first, then the verdicts of all laws by
  /// importance. Verdicts are recomputed; this does not affect later reports.
  std::vector<LiveFinding> findings() const;
  /// The same with the verdicts of the latest evaluation, for the cost of a copy.
  std::vector<LiveFinding> last_findings() const;
  /// Changes whenever last_findings() may have.
  uint64_t version() const;
  const Engine& engine() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tycho::analyzer
