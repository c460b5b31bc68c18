#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "src/incident/movement.h"
#include "src/incident/quantities.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// The last observations of one watched quantity at all of its layers, on its scale, in single
/// precision. At most kMost of them, fewer where there are many layers, so that all quantities
/// together hold about kMostCells values, as long as kFewest allow it.
class RecentValues {
 public:
  static constexpr size_t kMost = 256;
  static constexpr size_t kFewest = 48;
  static constexpr size_t kMostCells = size_t{4} << 20;

  explicit RecentValues(const Quantity& quantity) : quantity_(&quantity) {}

  void observe(const RunContext& context, const Frame& frame);
  size_t entities() const { return entities_; }
  /// What was observed of a layer, by step.
  std::vector<Observation> of(size_t entity) const;

 private:
  struct Row {
    int64_t step = 0;
    std::vector<float> value;  // NaN: not observed
  };
  const Quantity* quantity_;
  bool resolved_ = false;
  ColumnIndex column_ = kNoColumn;
  ColumnIndex divisor_ = kNoColumn;
  size_t entities_ = 0;
  std::deque<Row> rows_;
};

}  // namespace tycho::analyzer
