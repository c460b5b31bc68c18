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

/// Judges a run while its records come in: the Engine of the report, looked at from time to time,
/// and an alarm at the step at which there is ground for it. A MessageHandler: hand it to
/// RunReader::read, or call it with the messages as they are recorded.
///
/// What it says is a function of the messages and their order alone, not of time, of finish_step()
/// or of calls of findings(): live, replayed and from a file that is followed it says the same at
/// the same steps, and its findings at any step are those of a report of the trace up to there.
///
/// Verdicts are looked at after each of the first frames, and then whenever their number has grown
/// by 2 %. A verdict is said when it is reached and when it differs from the one said last; NOT_YET
/// and NOT_MEASURED are not said of what nothing was said of yet. A law that is tested at many
/// looks is wrong at some of them more often than at one: do not act upon the first VIOLATED.
///
/// Alarms are looked at after every frame. At once: loss_not_finite, not_finite (gradients,
/// activations), trace_incomplete. After five observations in a row that say so: what else
/// loss_alarms() knows, layer_silent, updates_stopped. Of the laws, at their looks: edge_passed,
/// batch_far_past_noise_scale. An alarm is said when it is raised, when its severity changes, and
/// when it is over.
///
/// Memory is bounded by laws times layers and parameters. One thread at a time. The listener may
/// ask for findings; it must not hand messages over.
class LiveJudge : public trace::MessageHandler {
 public:
  using Listener = std::function<void(const LiveFinding&)>;

  /// `listener` may be empty.
  explicit LiveJudge(Listener listener, std::vector<std::unique_ptr<Law>> laws = make_laws());
  ~LiveJudge() override;

  /// Called with each complete frame, before the judge looks at it.
  void add_consumer(Engine::FrameConsumer consumer);

  bool on_segment(const trace::SegmentInfo&, const v1::RunDescription&, const v1::ModelDescription&,
                  const v1::StatisticRegistry&) override;
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override;
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override;
  bool on_event(const v1::Event& event, int64_t time_ns) override;
  bool on_health(const v1::Health& health, int64_t time_ns) override;
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override;

  /// All records of the newest step have come: it is judged now, and not when the next one begins.
  /// May be left out, and changes nothing but when things are said.
  void finish_step();
  /// The trace is at its end: completes the newest step and looks once more.
  void finish();

  /// What is known: alarms that are raised, the most serious first, then the verdicts of all laws
  /// by importance. Verdicts are computed anew; the result does not change what is said later.
  std::vector<LiveFinding> findings() const;
  /// The same with the verdicts of the last look: it costs a copy.
  std::vector<LiveFinding> last_findings() const;
  /// Changes whenever last_findings() may have.
  uint64_t version() const;
  const Engine& engine() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tycho::analyzer
