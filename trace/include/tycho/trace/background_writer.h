#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>

#include "tycho/trace/run_writer.h"

namespace tycho::trace {

/// What to do when messages are produced faster than the disk can store them.
enum class QueuePolicy {
  kDrop,   ///< drop the message and count it: the producer never waits (default)
  kBlock,  ///< wait: the trace is complete, but the producer is delayed
};

/// All records of a step were pushed. Not written to the trace: only for the listener.
struct StepEnd {
  int64_t step = 0;
};

/// A message on its way to the disk.
struct QueuedMessage {
  /// A ModelDescription changes what the ids of later messages mean: it is never dropped.
  std::variant<v1::Record, v1::OptimizerSettings, v1::Event, v1::Health, v1::ModelStructure,
               v1::ModelDescription, v1::Finding, StepEnd>
      message;
  std::string probe;  ///< for a Record
  int64_t time_ns = 0;
};

/// A thread that owns a RunWriter, behind a bounded queue. `push` may be called from any thread and
/// never throws, never touches the disk and, with kDrop, never waits.
class BackgroundWriter {
 public:
  struct Counters {
    uint64_t messages_written = 0;
    uint64_t messages_dropped = 0;  ///< queue was full, or the writer could not store them
    uint64_t bytes_written = 0;
    uint64_t write_failures = 0;
    std::string last_failure;
  };

  /// `capacity_bytes` bounds the memory of waiting messages.
  BackgroundWriter(std::unique_ptr<RunWriter> writer, QueuePolicy policy, size_t capacity_bytes);
  ~BackgroundWriter();  // closes
  BackgroundWriter(const BackgroundWriter&) = delete;
  BackgroundWriter& operator=(const BackgroundWriter&) = delete;

  bool push(QueuedMessage message);  ///< false: dropped
  /// From now on each message is passed to `listener` after the writer has handled it, stored or
  /// not, in order and on the writer's thread: the listener must not wait and must not throw.
  /// Empty: no listener.
  using Listener = std::function<void(QueuedMessage message)>;
  void set_listener(Listener listener);
  /// Waits until everything pushed before is in the hands of the operating system.
  Status flush();
  /// Drains the queue, seals the trace and ends the thread. Idempotent.
  Status close();
  Counters counters() const;
  /// CPU time of the thread so far; 0 if the system does not provide it.
  double cpu_seconds() const;
  /// In a forked child the thread does not exist: makes every later call a no-op.
  void abandon() noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tycho::trace
