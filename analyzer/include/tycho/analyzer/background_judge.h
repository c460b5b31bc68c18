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

/// A LiveJudge on a thread of its own, behind a bounded queue, for a run of this process. The
/// thread opens no file and starts no process; all that it does is to compute, and to call the
/// listeners.
///
/// Nobody waits for it. When the queue is full, whole steps are left out and counted until it is
/// half empty: what is said then is what a trace without these steps would say. What the thread
/// throws (memory is out) ends the judging, and nothing else.
///
/// Every member may be called from any thread, also from a listener.
class BackgroundJudge {
 public:
  struct Options {
    /// Of the messages that wait.
    size_t capacity_bytes = size_t{8} << 20;
    /// How long close() waits for the thread at most: a listener may hang.
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
    std::string listener_exception;  ///< what the first one said
    std::string failure;             ///< why nothing is judged any more; empty: it is
  };

  /// Throws where there is no memory or no thread to be had.
  BackgroundJudge(Segment segment, Options options);
  ~BackgroundJudge();  // closes
  BackgroundJudge(const BackgroundJudge&) = delete;
  BackgroundJudge& operator=(const BackgroundJudge&) = delete;

  /// Called on the thread with what is said from now on. What a listener throws is counted; one
  /// that takes long delays what is said next.
  void add_listener(Listener listener);
  /// A message of the run, in recorded order. A ModelDescription begins a segment with that model.
  /// A StepEnd says that its step is complete: without it a step is judged when the next one
  /// begins.
  void push(trace::QueuedMessage message) noexcept;

  /// As of the last look; empty before the first message was judged.
  std::vector<LiveFinding> findings() const;
  /// Of the law at the whole run, as of the last look; NOT_YET for what is no law.
  Verdict verdict(const std::string& law) const;
  Counters counters() const;
  /// Whether the caller is a listener, or called by one.
  bool on_its_thread() const;
  /// CPU time of the thread so far; 0 where the system does not tell.
  double cpu_seconds() const;

  /// Judges what was pushed, looks once more, and ends the thread; waits for `patience` at most.
  /// Called by a listener it waits for nothing, and that listener is the last one called.
  /// Idempotent.
  void close();
  /// In a forked child the thread does not exist: makes every later call a no-op.
  void abandon() noexcept;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace tycho::analyzer
