#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tycho/trace/status.h"
#include "tycho/v1/record.pb.h"
#include "tycho/v1/run.pb.h"

namespace tycho::trace {

/// A stretch of a segment that could not be read.
struct SkippedRegion {
  std::string segment;  ///< file name
  uint64_t begin = 0;   ///< first byte
  uint64_t end = 0;     ///< one past the last byte
  std::string why;
  // Steps that may have been lost: those after the last step read before and before the first read
  // after.
  int64_t after_step = -1;   ///< -1: from the beginning
  int64_t before_step = -1;  ///< -1: to the end
  uint64_t messages =
      0;  ///< messages known to be lost, from sequence numbers and Seal counts; 0: unknown
};

struct SegmentInfo {
  std::string name;
  uint64_t bytes = 0;
  bool sealed = false;  ///< ended with a footer: nothing is missing at its end
  /// Not sealed, and its writer is alive (it holds a lock on the file): what is missing at its end
  /// is still to come.
  bool being_written = false;
  /// Neither sealed nor being written: its writer died, and steps of up to this many seconds after
  /// last_step may be missing. 0 otherwise.
  double at_risk_seconds = 0;
  bool resumed = false;  ///< starts a resumed session
  int64_t resume_step = 0;
  int64_t first_step = -1;  ///< -1: no step in it
  int64_t last_step = -1;
  uint64_t messages = 0;
  uint64_t chunks = 0;
  std::string compression;
};

struct ReadOptions {
  int64_t from_step = std::numeric_limits<int64_t>::min();  ///< inclusive
  int64_t to_step = std::numeric_limits<int64_t>::max();    ///< inclusive
  /// If a resumed session recorded steps again, skip the earlier recording.
  bool skip_superseded = true;
};

/// Receives the messages of a run in recorded order. Return false to stop.
class MessageHandler {
 public:
  virtual ~MessageHandler() = default;
  virtual bool on_segment(const SegmentInfo&, const v1::RunDescription&,
                          const v1::ModelDescription&, const v1::StatisticRegistry&) {
    return true;
  }
  virtual bool on_record(const std::string& /*probe*/, const v1::Record&, int64_t /*time_ns*/) {
    return true;
  }
  virtual bool on_optimizer(const v1::OptimizerSettings&, int64_t) { return true; }
  virtual bool on_event(const v1::Event&, int64_t) { return true; }
  virtual bool on_health(const v1::Health&, int64_t) { return true; }
  virtual bool on_structure(const v1::ModelStructure&, int64_t) { return true; }
  virtual bool on_finding(const v1::Finding&, int64_t) { return true; }
  virtual bool on_skipped(const SkippedRegion&) { return true; }
};

/// Reads a run directory or one segment file. Memory is bounded by one chunk, whatever the size of
/// the trace. Damage never ends a read: it is skipped up to the next intact chunk and reported.
class RunReader {
 public:
  /// Fails if the path does not exist, holds no segment, or is not a trace.
  static Result<std::unique_ptr<RunReader>> open(const std::string& path);
  virtual ~RunReader() = default;

  /// Reads everything in range once, in order. May be called again.
  virtual Status read(MessageHandler& handler, const ReadOptions& options = {}) = 0;

  /// Of the last complete read(): what was lost, and per-segment facts.
  virtual const std::vector<SkippedRegion>& skipped() const = 0;
  virtual const std::vector<SegmentInfo>& segments() const = 0;

  // From the first segment that has them; the last resumed segment's description is the current
  // one.
  virtual const v1::RunDescription& run() const = 0;
  virtual const v1::ModelDescription& model() const = 0;
  virtual const v1::StatisticRegistry& registry() const = 0;
};

/// What is, or may be, missing, one line each: stretches that could not be read, and segments whose
/// writer died. Empty if nothing is.
std::vector<std::string> losses(const std::vector<SegmentInfo>& segments,
                                const std::vector<SkippedRegion>& skipped);

struct RecoverOutcome {
  uint64_t messages = 0;
  uint64_t bytes_lost = 0;
  std::vector<std::string> losses;
};

/// Rewrites what can be read of `path` as a clean, sealed run directory `output`, which must not
/// exist. Events of the new run, code `recovered_with_loss`, say what is missing.
Result<RecoverOutcome> recover(const std::string& path, const std::string& output);

}  // namespace tycho::trace
