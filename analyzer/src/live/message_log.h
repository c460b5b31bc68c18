#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tycho/trace/run_reader.h"

namespace tycho::analyzer {

/// Keeps the messages of a run in memory and hands any stretch of them to another handler, as often
/// as wanted. For tests.
class MessageLog : public trace::MessageHandler {
 public:
  bool on_segment(const trace::SegmentInfo& info, const v1::RunDescription& run,
                  const v1::ModelDescription& model,
                  const v1::StatisticRegistry& registry) override {
    return keep([=](MessageHandler& to) { return to.on_segment(info, run, model, registry); }, -1);
  }
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    return keep([=](MessageHandler& to) { return to.on_record(probe, record, time_ns); },
                record.step());
  }
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override {
    return keep([=](MessageHandler& to) { return to.on_optimizer(settings, time_ns); }, -1);
  }
  bool on_event(const v1::Event& event, int64_t time_ns) override {
    return keep([=](MessageHandler& to) { return to.on_event(event, time_ns); }, -1);
  }
  bool on_health(const v1::Health& health, int64_t time_ns) override {
    return keep([=](MessageHandler& to) { return to.on_health(health, time_ns); }, -1);
  }
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override {
    return keep([=](MessageHandler& to) { return to.on_structure(structure, time_ns); }, -1);
  }

  size_t size() const { return messages_.size(); }
  /// The step of a record; -1: another message.
  int64_t record_step(size_t index) const { return messages_[index].second; }
  void replay(size_t begin, size_t end, MessageHandler& to) const {
    for (size_t i = begin; i < end; ++i) messages_[i].first(to);
  }
  /// Whether the records of a step end with message `index`.
  bool ends_step(size_t index) const {
    const int64_t step = record_step(index);
    if (step < 0) return false;
    for (size_t i = index + 1; i < size(); ++i) {
      if (record_step(i) >= 0) return record_step(i) != step;
    }
    return true;
  }

 private:
  bool keep(std::function<bool(MessageHandler&)> send, int64_t step) {
    messages_.emplace_back(std::move(send), step);
    return true;
  }
  std::vector<std::pair<std::function<bool(MessageHandler&)>, int64_t>> messages_;
};

}  // namespace tycho::analyzer
