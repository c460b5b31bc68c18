#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tycho/trace/run_reader.h"

namespace tycho::trace {

/// State of a followed run.
enum class RunState {
  kWaiting,     ///< there is nothing to read yet: no directory, or no segment with a complete head
  kLive,        ///< its writer is alive
  kFinished,    ///< it was closed
  kDied,        ///< it was not closed, and no process writes to it
  kGone,        ///< it no longer exists; what was read is kept
  kUnreadable,  ///< the file is not a trace, or may not be read
};
/// waiting, live, finished, died, gone, unreadable.
const char* to_string(RunState state);

/// Receives the messages of a run that is being written.
class FollowHandler : public MessageHandler {
 public:
  /// Earlier messages are void: the run was replaced, resumed at a step already delivered, or a
  /// writer removed what it had written. Everything is delivered again from the beginning.
  virtual void on_restart() = 0;
};

/// Reads a run directory, or one segment file, that may still be written: each poll() delivers what
/// is new, so that all messages together are those of RunReader::read on the same bytes, in the
/// same order. Handlers cannot stop it. It keeps one file open, and memory for one chunk and for
/// the descriptions of each segment. One thread at a time.
class RunFollower {
 public:
  /// The path need not exist yet.
  explicit RunFollower(std::string path);
  ~RunFollower();

  /// Reads about `most_bytes` of new data. True: there is more to read immediately.
  bool poll(FollowHandler& handler, uint64_t most_bytes);
  /// The next poll() calls on_restart() and starts from the beginning.
  void restart();

  RunState state() const;
  /// If the state is neither live nor finished: the reason, in words.
  const std::string& why() const;
  /// Two sessions wrote to the run at once: the older one is no longer read.
  bool two_writers() const;
  /// Something was passed that may differ when read again: damage in a segment that was being
  /// written, or a second writer.
  bool is_doubtful() const;

  // As of the last poll(), what RunReader says after a read of the same bytes.
  const std::vector<SegmentInfo>& segments() const;
  const std::vector<SkippedRegion>& skipped() const;
  const v1::RunDescription& run() const;
  const v1::ModelDescription& model() const;
  const v1::StatisticRegistry& registry() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tycho::trace
