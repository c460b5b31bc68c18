#pragma once

#include <string>

#include "tycho/trace/run_reader.h"

namespace tycho::analyzer {

/// Passes every message on to another handler. Derive to look at some on their way.
class ForwardingHandler : public trace::MessageHandler {
 public:
  /// `next` outlives this.
  explicit ForwardingHandler(trace::MessageHandler* next) : next_(next) {}

  bool on_segment(const trace::SegmentInfo& info, const v1::RunDescription& run,
                  const v1::ModelDescription& model,
                  const v1::StatisticRegistry& registry) override {
    return next_->on_segment(info, run, model, registry);
  }
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    return next_->on_record(probe, record, time_ns);
  }
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override {
    return next_->on_optimizer(settings, time_ns);
  }
  bool on_event(const v1::Event& event, int64_t time_ns) override {
    return next_->on_event(event, time_ns);
  }
  bool on_health(const v1::Health& health, int64_t time_ns) override {
    return next_->on_health(health, time_ns);
  }
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override {
    return next_->on_structure(structure, time_ns);
  }
  bool on_finding(const v1::Finding& finding, int64_t time_ns) override {
    return next_->on_finding(finding, time_ns);
  }
  bool on_skipped(const trace::SkippedRegion& region) override { return next_->on_skipped(region); }

 private:
  trace::MessageHandler* next_;
};

}  // namespace tycho::analyzer
