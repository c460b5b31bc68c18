#include "src/live/stalled_parts.h"

#include <fmt/format.h>

#include <limits>

namespace tycho::analyzer {

void StalledParts::Streak::add(bool stalled, int64_t step) {
  if (!stalled) {
    *this = Streak();
    return;
  }
  if (length == 0) begin = step;
  if (length < std::numeric_limits<uint32_t>::max()) ++length;
}

void StalledParts::observe(const RunContext& context, const Frame& frame) {
  if (dead_ == kNoColumn) {
    dead_ = context.column("dead_fraction", v1::SCOPE_LAYER);
    update_ = context.column("update_norm_sq", v1::SCOPE_RUN);
  }
  const ColumnValues dead = frame.column(dead_);
  if (dead.present) {
    if (layers_.size() < dead.size) layers_.resize(dead.size);
    for (size_t i = 0; i < dead.size; ++i) {
      if (is_measured(dead[i])) layers_[i].add(dead[i] >= 1, frame.step());
    }
  }
  const ColumnValues update = frame.column(update_);
  if (update.present && is_measured(update[0])) run_.add(update[0] == 0, frame.step());
}

std::vector<Alarm> StalledParts::alarms(const RunContext& context) const {
  std::vector<Alarm> result;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Streak& streak = layers_[i];
    if (streak.length < kConfirming) continue;
    Alarm alarm;
    alarm.code = "layer_silent";
    alarm.severity = Severity::kWarning;
    alarm.scope = context.scope_name(v1::SCOPE_LAYER, static_cast<uint32_t>(i));
    alarm.title = "A layer has gone silent";
    alarm.step = streak.begin;
    alarm.value = 1;
    alarm.text = fmt::format(
        "From step {} on, at {} observations in a row, no unit was above zero for any example "
        "of the batch: no gradient passes through this layer, and the layers before it learn "
        "through other paths or not at all. Go back to earlier weights with a lower learning "
        "rate, or use a leaky activation.",
        streak.begin, streak.length);
    result.push_back(std::move(alarm));
  }
  if (run_.length >= kConfirming) {
    Alarm alarm;
    alarm.code = "updates_stopped";
    alarm.severity = Severity::kWarning;
    alarm.title = "The weights do not change";
    alarm.step = run_.begin;
    alarm.value = 0;
    alarm.text = fmt::format(
        "From step {} on, at {} observations in a row, the optimizer changed no weight at all: "
        "is the learning rate zero, are updates below the resolution of the weights, is every "
        "step skipped, or do gradients not reach the optimizer?",
        run_.begin, run_.length);
    result.push_back(std::move(alarm));
  }
  return result;
}

}  // namespace tycho::analyzer
