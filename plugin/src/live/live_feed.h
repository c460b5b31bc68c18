#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tycho/session.h"
#include "tycho/trace/background_writer.h"
#include "tycho/v1/run.pb.h"

namespace tycho {

/// What a session knows of the judge that follows it. Only LiveFindings knows the analyzer: a
/// program that asks for no verdicts does not link it.
///
/// start() and abandon() are of the session's thread, the rest is of any.
class LiveFeed {
 public:
  struct Segment {
    v1::RunDescription run;
    v1::ModelDescription model;
    v1::StatisticRegistry registry;
  };
  struct Counters {
    uint64_t steps_left_out = 0;
    uint64_t listener_exceptions = 0;
    std::string listener_exception;
    std::string failure;
  };
  virtual ~LiveFeed() = default;

  /// Recording begins. `to_trace` takes what is said, on the judge's thread. Throws where there is
  /// no memory or no thread to be had.
  virtual void start(Segment segment, trace::BackgroundWriter::Listener to_trace) = 0;
  virtual bool started() const = 0;
  /// Where messages of the run go to once it is started; it never waits and never throws.
  virtual trace::BackgroundWriter::Listener inlet() const = 0;
  virtual Counters counters() const = 0;
  virtual bool on_its_thread() const = 0;
  virtual double cpu_seconds() const = 0;
  virtual void close() = 0;
  virtual void abandon() noexcept = 0;
};

}  // namespace tycho
