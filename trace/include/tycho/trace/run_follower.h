#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tycho/trace/run_reader.h"

namespace tycho::trace {

/// What a run that is followed is doing.
enum class RunState {
  kWaiting,     ///< there is nothing to read yet: no directory, or no segment with a whole head
  kLive,        ///< its writer is alive
  kFinished,    ///< it was closed
  kDied,        ///< it was not closed, and nobody writes to it
  kGone,        ///< it was there, and is no more; what was read of it is kept
  kUnreadable,  ///< what is there is no trace, or may not be read
};
/// waiting, live, finished, died, gone, unreadable.
const char* to_string(RunState state);

/// Receives the messages of a run that is being written.
class FollowHandler : public MessageHandler {
 public:
  /// What was handed over does not count any more: the run was replaced, resumed at a step that had
  /// been handed over, or a writer took back what it had written. Everything follows again from the
  /// beginning.
  virtual void on_restart() = 0;
};

/// Reads a run directory, or one segment file, that may be written meanwhile: each poll() hands
/// over what has come since, so that all together are the messages of RunReader::read on the same
/// bytes, in the same order. Handlers cannot stop it. It keeps one file open, and memory for one
/// chunk and for the descriptions of each segment. One thread at a time.
class RunFollower {
 public:
  /// The path need not exist yet.
  explicit RunFollower(std::string path);
  ~RunFollower();

  /// Reads about `most_bytes` of what is new. True: there is more to read at once.
  bool poll(FollowHandler& handler, uint64_t most_bytes);
  /// The next poll() calls on_restart() and begins at the beginning.
  void restart();

  RunState state() const;
  /// Of a state that is not live or finished: what is the matter, in words.
  const std::string& why() const;
  /// Two sessions wrote to the run at once: of the older one nothing more is read.
  bool two_writers() const;
  /// Something was passed that may look different when it is read again: damage in a segment that
  /// was being written, or a second writer.
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
