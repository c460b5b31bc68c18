#include "run_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <new>
#include <random>
#include <utility>

#include "valid_text.h"

namespace tycho {
namespace {

constexpr size_t kQueueBytes = size_t{64} << 20;

}  // namespace

std::string random_id() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", device(), device(), device(), device());
}

int64_t wall_clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

RunTrace::RunTrace(Durability durability, Open open)
    : durability_(durability), open_(std::move(open)) {}

void RunTrace::push(trace::QueuedMessage message) {
  if (!begun_) {
    begun_ = true;
    auto opened = open_();
    if (opened.ok()) {
      const auto policy = durability_ == Durability::complete ? trace::QueuePolicy::kBlock
                                                              : trace::QueuePolicy::kDrop;
      writer_ =
          std::make_shared<trace::BackgroundWriter>(std::move(opened).value(), policy, kQueueBytes);
    } else {
      print_once("trace_not_opened", "nothing is recorded: " + opened.status().message());
    }
    if (begin_) std::exchange(begin_, nullptr)();
  }
  if (message.time_ns == 0) message.time_ns = wall_clock_ns();
  if (writer_) {
    writer_->push(std::move(message));
  } else if (listener_) {
    listener_(std::move(message));
  }
}

void RunTrace::set_listener(trace::BackgroundWriter::Listener listener) {
  if (writer_) {
    writer_->set_listener(std::move(listener));
  } else {
    listener_ = std::move(listener);
  }
}

trace::BackgroundWriter::Listener RunTrace::inlet() const {
  if (!writer_) return {};
  return [writer = writer_](trace::QueuedMessage message) {
    if (message.time_ns == 0) message.time_ns = wall_clock_ns();
    writer->push(std::move(message));
  };
}

void RunTrace::event(int64_t step, v1::Event::Kind kind, const std::string& code,
                     const std::string& message, v1::Scope scope, uint32_t entity) {
  v1::Event& event = events_[{code, static_cast<int>(scope), entity}];
  event.set_count(event.count() + 1);
  if (event.count() > 1) return;
  event.set_step(step);
  event.set_kind(kind);
  event.set_code(valid_text(code));
  event.set_message(valid_text(message));
  event.set_scope(scope);
  event.set_entity(entity);
  push(event);
  if (kind == v1::Event::NOTICE || kind == v1::Event::FAULT || kind == v1::Event::NON_FINITE) {
    print_once(code, fmt::format("step {}: {}", step, message));
  }
}

void RunTrace::print_once(const std::string& code, const std::string& message) {
  if (printed_.insert(code).second) std::fprintf(stderr, "tycho: %s\n", message.c_str());
}

void RunTrace::report_losses(v1::Health* health) {
  if (!writer_) return;
  const auto counters = writer_->counters();
  health->set_messages_written(counters.messages_written);
  health->set_messages_dropped(counters.messages_dropped);
  health->set_bytes_written(counters.bytes_written);
  health->set_write_failures(counters.write_failures);
  health->set_last_write_failure(counters.last_failure);
  if (counters.write_failures > 0) {
    print_once("write_failure", "the trace cannot be written: " + counters.last_failure);
  }
  if (counters.messages_dropped > 0) {
    print_once("messages_dropped", "the trace is incomplete: messages were dropped");
  }
}

void RunTrace::change_model(const v1::ModelDescription& model,
                            const std::map<uint32_t, uint32_t>& parameter_of,
                            const std::map<uint32_t, uint32_t>& layer_of) {
  if (!begun_) return;  // The first segment will have it.
  std::map<std::tuple<std::string, int, uint32_t>, v1::Event> kept;
  for (auto& [key, event] : events_) {
    const auto& [code, scope, entity] = key;
    if (scope != v1::SCOPE_PARAMETER && scope != v1::SCOPE_LAYER) {
      kept.emplace(key, event);
      continue;
    }
    const auto& ids = scope == v1::SCOPE_LAYER ? layer_of : parameter_of;
    const auto id = std::find_if(ids.begin(), ids.end(), [&, old = entity](const auto& entry) {
      return entry.second == old;
    });
    if (id == ids.end()) {
      if (event.count() > 1) push(event);
      continue;
    }
    event.set_entity(id->first);
    kept.emplace(std::make_tuple(code, scope, id->first), event);
  }
  events_ = std::move(kept);
  trace::QueuedMessage queued;
  queued.message = model;
  queued.time_ns = wall_clock_ns();
  if (!writer_) {
    if (listener_) listener_(std::move(queued));
    return;
  }
  if (!writer_->push(std::move(queued))) throw std::bad_alloc();
}

void RunTrace::count_events() {
  for (const auto& [key, event] : events_) {
    if (event.count() > 1) push(event);
  }
}

void RunTrace::flush() {
  if (writer_) (void)writer_->flush();
}

double RunTrace::writer_cpu_seconds() const { return writer_ ? writer_->cpu_seconds() : 0; }

void RunTrace::close() {
  if (!writer_) return;
  const Status status = writer_->close();
  writer_->set_listener({});
  if (!status.ok()) print_once("write_failure", "the trace cannot be sealed: " + status.message());
}

void RunTrace::abandon() {
  if (writer_) writer_->abandon();
}

}  // namespace tycho
