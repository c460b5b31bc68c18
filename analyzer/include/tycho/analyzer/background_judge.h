#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tycho/analyzer/live_finding.h"
#include "tycho/trace/background_writer.h"
#include "tycho/v1/run.pb.h"

namespace tycho::analyzer {

/// A LiveJudge on its own thread, behind a bounded queue, for a run of this process. The thread
/// opens no file and starts no process; it only computes and calls the listeners.
///
/// Nothing waits for it. When the queue is full, whole steps are left out and counted until it is
/// half empty: findings are then those of a trace without these steps. An exception on the thread
/// (out of memory) ends the judging, and nothing else.
///
/// Every member may be called from any thread, including from a listener.
class BackgroundJudge {
 public:
  struct Options {
    /// Of the messages that wait.
    size_t capacity_bytes = size_t{8} << 20;
    /// Longest time that close() waits for the thread: a listener may hang.
    std::chrono::milliseconds patience{10000};
  };
  /// A segment of the run, as its writer opens it.
  struct Segment {
    v1::RunDescription run;
    v1::ModelDescription model;
    v1::StatisticRegistry registry;
  };
  using Listener = std::function<void(const LiveFinding&)>;

  struct Counters {
    uint64_t steps_left_out = 0;
    uint64_t listener_exceptions = 0;
    std::string listener_exception;  ///< message of the first one
    std::string failure;             ///< why judging ended; empty: it has not
  };

  /// Throws if no memory or no thread is available.
  BackgroundJudge(Segment segment, Options options);
  ~BackgroundJudge();  // closes
  BackgroundJudge(const BackgroundJudge&) = delete;
  BackgroundJudge& operator=(const BackgroundJudge&) = delete;

  /// Adds a listener, called on the thread with each finding from now on. Exceptions from a
  /// listener are counted; a slow listener delays the next findings.
  void add_listener(Listener listener);
  /// A message of the run, in recorded order. A ModelDescription begins a segment with that model.
  /// A StepEnd marks its step as complete: without it a step is judged when the next one begins.
  void push(trace::QueuedMessage message) noexcept;

  /// As of the latest evaluation; empty before the first message was judged.
  std::vector<LiveFinding> findings() const;
  /// Verdict of the law for the whole run, as of the latest evaluation; NOT_YET for an unknown law.
  Verdict verdict(const std::string& law) const;
  Counters counters() const;
  /// Whether the caller is a listener, or was called by one.
  bool on_its_thread() const;
  /// CPU time of the thread so far; 0 if the system does not provide it.
  double cpu_seconds() const;

  /// Judges what was pushed, evaluates once more, and ends the thread; waits at most for
  /// `patience`. If called by a listener it does not wait, and that listener is the last one
  /// called. Idempotent.
  void close();
  /// In a forked child the thread does not exist: makes every later call a no-op.
  void abandon() noexcept;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace tycho::analyzer
