#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "tycho/trace/status.h"
#include "tycho/v1/record.pb.h"
#include "tycho/v1/run.pb.h"

namespace tycho::trace {

class FileSystem;

struct RunWriterOptions {
  /// The run directory. Created with its parents; must be writable.
  std::string directory;
  /// A segment is sealed and a new one opened when it has grown past this many bytes.
  uint64_t segment_bytes = uint64_t{256} << 20;
  /// Uncompressed size at which a chunk is closed.
  uint64_t chunk_bytes = uint64_t{1} << 20;
  /// Latest time after which a message has reached the operating system, and survives the death of
  /// the process, if the disk keeps up and tick() is called several times within it. It states what
  /// a killed writer may have lost. A chunk is closed after half of it, however small the chunk is.
  std::chrono::milliseconds at_risk{1000};
  /// zstd level; 0 stores chunks uncompressed.
  int compression_level = 1;
  /// fdatasync at most this often, and at close; zero: only at close; negative: never.
  std::chrono::milliseconds sync_interval{30000};
  /// Interval of retries after a failure: space may become available.
  std::chrono::milliseconds retry_interval{5000};
  /// nullptr: the operating system's file system. Not owned. Tests inject faults here.
  FileSystem* file_system = nullptr;
};

/// Writes a run directory of MCAP segments (docs/format.md). Not thread-safe: one thread owns it.
/// After a write failure it keeps counting and retries from time to time, in the same segment if it
/// can remove the partial data. It never throws.
class RunWriter {
 public:
  /// Opens the directory and the first segment. If the directory already holds segments, the new
  /// one follows them; a directory that holds a run (holds_run) is refused unless `run.resumed()`,
  /// in which case run_id is taken over from the existing segments.
  static Result<std::unique_ptr<RunWriter>> open(const RunWriterOptions& options,
                                                 v1::RunDescription run, v1::ModelDescription model,
                                                 v1::StatisticRegistry registry);
  virtual ~RunWriter();

  // Appends one message to the open chunk. `time_ns` is the wall clock of the observation.
  virtual void write(const std::string& probe, const v1::Record& record, int64_t time_ns) = 0;
  virtual void write(const v1::OptimizerSettings& settings, int64_t time_ns) = 0;
  virtual void write(const v1::Event& event, int64_t time_ns) = 0;
  virtual void write(const v1::Health& health, int64_t time_ns) = 0;
  virtual void write(const v1::ModelStructure& structure, int64_t time_ns) = 0;
  virtual void write(const v1::Finding& finding, int64_t time_ns) = 0;
  /// From now on ids are those of this model: a new segment is opened with it. A structure written
  /// earlier is void. If that fails, nothing is stored until it succeeds.
  virtual void write(const v1::ModelDescription& model, int64_t time_ns) = 0;

  /// Closes the open chunk, so that everything written so far survives the death of the process.
  virtual Status flush() = 0;
  /// Closes a chunk that is older than half of `at_risk`, and syncs if due. Call it several times
  /// within that time, even when there is nothing to write.
  virtual void tick() = 0;
  /// Seals the segment (summary and footer). Idempotent.
  virtual Status close() = 0;

  virtual uint64_t messages_written() const = 0;
  virtual uint64_t bytes_written() const = 0;
  virtual uint64_t messages_lost()
      const = 0;  ///< given to write() but not stored, for want of space or otherwise
  virtual uint64_t write_failures() const = 0;
  virtual const Status& last_failure() const = 0;
  virtual const v1::RunDescription& run() const = 0;
};

/// Whether one of the directory's segments holds data, so that a new run must not be written into
/// it. Segments that nothing was written to (their writer died at once, or the disk was full) hold
/// no run.
bool holds_run(const std::string& directory);

}  // namespace tycho::trace
