#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "tycho/analyzer/law.h"
#include "tycho/trace/run_reader.h"

namespace tycho::analyzer {

/// Records that could not be used, by reason.
struct IgnoredRecords {
  uint64_t unknown_statistic = 0;  ///< columns whose statistic no registry defines
  uint64_t malformed =
      0;  ///< columns with unequal lengths, unknown entities, too long a list or an unknown scope
  uint64_t late = 0;  ///< records of a step whose frame was already complete
  uint64_t other_reference =
      0;  ///< columns relative to the first observation of a resumed session, not to the run's
};

/// Turns messages into frames and feeds them to laws and to other consumers. It is a
/// MessageHandler: hand it to RunReader::read, or call it live. A frame is complete when a record
/// of a later step or a new session arrives, or at finish(). Events, health and structure that
/// arrive while a frame is open count from its next record on, or otherwise from the next frame on,
/// so that what is known at a step does not depend on when it was found to be complete. If a value
/// is recorded twice at a step, the later one counts. Records of the probe "validation" come after
/// their step and describe the weights that it left: they form a frame of their own behind that of
/// the step (Frame::is_after_step()), which laws do not see and frames() does not count. Memory
/// depends on the numbers of layers, parameters and statistics, not on the number of steps. One
/// thread at a time.
class Engine : public trace::MessageHandler {
 public:
  using FrameConsumer = std::function<void(const RunContext&, const Frame&)>;

  explicit Engine(std::vector<std::unique_ptr<Law>> laws = make_laws());
  ~Engine() override;

  void add_consumer(FrameConsumer consumer);

  bool on_segment(const trace::SegmentInfo&, const v1::RunDescription&, const v1::ModelDescription&,
                  const v1::StatisticRegistry&) override;
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override;
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override;
  bool on_event(const v1::Event& event, int64_t time_ns) override;
  bool on_health(const v1::Health& health, int64_t time_ns) override;
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override;
  bool on_skipped(const trace::SkippedRegion& region) override;

  /// Completes the open frame: the trace has ended, or no further record of that step will arrive.
  /// Records of later steps may follow.
  void finish();

  const RunContext& context() const;
  /// Of all laws, sorted by importance. Within a law, violations at layers or parameters that do
  /// not survive control of the false discovery rate (Benjamini-Hochberg, 5 %) are given as
  /// UNDERPOWERED.
  std::vector<Finding> findings() const;
  const std::vector<v1::Event>& events() const;  ///< one per (code, entity), with the last count
  const v1::Health& health() const;              ///< totals; costs summed per probe
  int64_t first_step() const;
  int64_t last_step() const;
  uint64_t frames() const;
  const IgnoredRecords& ignored() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tycho::analyzer
