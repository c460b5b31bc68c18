#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "tycho/session_options.h"
#include "tycho/trace/background_writer.h"

namespace tycho {

/// A name that no other run has; never from the trainer's generators.
std::string random_id();

int64_t wall_clock_ns();

/// What a session writes and says: messages go to the trace behind a queue, an event is recorded at
/// its first time and once more with its count at the end, trouble goes to stderr once. Of one
/// thread.
class RunTrace {
 public:
  using Open = std::function<Result<std::unique_ptr<trace::RunWriter>>()>;
  /// `open` is called with the first message: by then every probe is known, and a segment begins
  /// with their statistics.
  RunTrace(Durability durability, Open open);

  /// Whether a message came already.
  bool begun() const { return begun_; }
  void push(trace::QueuedMessage message);
  /// `begin` is called when the trace is open and nothing is written yet.
  void on_begin(std::function<void()> begin) { begin_ = std::move(begin); }
  /// Who is handed each message once it is written, see BackgroundWriter; where the trace could not
  /// be opened, at once.
  void set_listener(trace::BackgroundWriter::Listener listener);
  /// Takes messages from any thread; empty where the trace could not be opened.
  trace::BackgroundWriter::Listener inlet() const;
  /// The events so far, each with its count.
  template <typename Action>
  void for_each_event(const Action& action) const {
    for (const auto& [key, event] : events_) action(event);
  }
  template <typename Message>
  void push(Message message, std::string probe = {}, int64_t time_ns = 0) {
    trace::QueuedMessage queued;
    queued.message = std::move(message);
    queued.probe = std::move(probe);
    queued.time_ns = time_ns;
    push(std::move(queued));
  }
  void event(int64_t step, v1::Event::Kind kind, const std::string& code,
             const std::string& message, v1::Scope scope, uint32_t entity);
  void print_once(const std::string& code, const std::string& message);
  /// From now on ids are those of this model. `parameter_of`, `layer_of`: the ids that were, by
  /// those that are; events of what is gone are recorded with their count. Throws where memory is
  /// out, and then nothing may be recorded any more.
  void change_model(const v1::ModelDescription& model,
                    const std::map<uint32_t, uint32_t>& parameter_of,
                    const std::map<uint32_t, uint32_t>& layer_of);
  /// Adds what the writer counted, and says it where something was lost.
  void report_losses(v1::Health* health);
  /// Records how often each event that came more than once did.
  void count_events();
  /// Waits until what was pushed so far is written.
  void flush();
  /// CPU time of the writing thread so far.
  double writer_cpu_seconds() const;
  /// Writes what is queued and seals the trace.
  void close();
  /// In a forked process, which has no writing thread: forgets the trace.
  void abandon();

 private:
  Durability durability_;
  Open open_;
  bool begun_ = false;
  std::function<void()> begin_;
  std::shared_ptr<trace::BackgroundWriter> writer_;
  trace::BackgroundWriter::Listener listener_;  // where there is no writer
  std::map<std::tuple<std::string, int, uint32_t>, v1::Event> events_;
  std::set<std::string> printed_;
};

}  // namespace tycho
