#pragma once

#include <cstdint>
#include <vector>

#include "tycho/analyzer/alarm.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// Parts of a run that do nothing any more, as exact facts: no estimate and no threshold but zero.
///
/// layer_silent: at kConfirming observations in a row no unit of the layer was above zero for any
/// example of the batch (dead_fraction = 1), so that no gradient went through it.
/// updates_stopped: at as many in a row no weight of the model changed (update_norm_sq = 0).
///
/// An Engine's consumer. Memory: a few bytes for each layer.
class StalledParts {
 public:
  static constexpr uint32_t kConfirming = 5;

  void observe(const RunContext& context, const Frame& frame);
  /// The layers in order, then the run.
  std::vector<Alarm> alarms(const RunContext& context) const;

 private:
  struct Streak {
    uint32_t length = 0;
    int64_t begin = -1;
    void add(bool stalled, int64_t step);
  };

  ColumnIndex dead_ = kNoColumn;
  ColumnIndex update_ = kNoColumn;
  std::vector<Streak> layers_;
  Streak run_;
};

}  // namespace tycho::analyzer
