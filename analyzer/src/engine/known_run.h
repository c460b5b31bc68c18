#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tycho/analyzer/frame.h"
#include "tycho/v1/record.pb.h"
#include "tycho/v1/run.pb.h"

namespace tycho::analyzer {

/// Stands for a layer or parameter that the run does not have.
inline constexpr uint32_t kNoEntity = std::numeric_limits<uint32_t>::max();

/// The newest values of one statistic at one scope, dense over the run's entity ids, with
/// not_measured() where there is none. Frames are numbered from 1 in the order in which they are
/// opened (CurrentFrame::number); values of an earlier frame than the open one are out of date, and
/// are left where they are only because clearing every column at every frame would cost more.
struct StoredColumn {
  std::string statistic;
  v1::Scope scope = v1::SCOPE_RUN;
  std::vector<double> value;
  std::vector<double> standard_error;  ///< NaN where there is none
  uint64_t value_frame = 0;            ///< frame that `value` belongs to; 0: none
  uint64_t standard_error_frame = 0;   ///< frame that `standard_error` belongs to; 0: none
};

/// What has become known of the run so far, in the run's ids: the RunContext of laws, and what the
/// engine writes to it. One thread at a time. Holds one StoredColumn per statistic and scope that
/// was recorded or asked for, and at most 4096 events.
class KnownRun : public RunContext {
 public:
  const v1::RunDescription& run() const override { return run_; }
  const v1::ModelDescription& model() const override { return model_; }
  const v1::StatisticRegistry& registry() const override { return registry_; }
  const v1::ModelStructure* structure() const override {
    return has_structure_ ? &structure_ : nullptr;
  }
  const std::vector<v1::Event>& events() const override { return events_; }
  /// O(columns), by string comparison.
  bool recorded(const std::string& statistic) const override;
  /// Makes an empty column where there is none. An index stays valid, and means the same, for the
  /// whole run.
  ColumnIndex column(const std::string& statistic, v1::Scope scope) const override;

  /// How many values a column of this scope has; 0 at scope index, where every step says its own
  /// length.
  size_t entities(v1::Scope scope) const;

  /// The column of an index that column() gave; at() of any number, nullptr where there is none.
  StoredColumn& stored(ColumnIndex index) { return columns_[static_cast<size_t>(index)]; }
  const StoredColumn* at(ColumnIndex index) const {
    const auto position = static_cast<size_t>(index);
    return index < 0 || position >= columns_.size() ? nullptr : &columns_[position];
  }

  void set_run(const v1::RunDescription& run) { run_ = run; }
  void set_structure(v1::ModelStructure structure);
  /// For those that add to them what a segment has; the entry at index i has id i.
  v1::ModelDescription& mutable_model() { return model_; }
  v1::StatisticRegistry& mutable_registry() { return registry_; }
  /// An event of a (code, scope, entity) that is known already raises its count to `event`'s, where
  /// that is larger; one more than fit is left out.
  void add_event(v1::Event event);

 private:
  v1::RunDescription run_;
  v1::ModelDescription model_;
  v1::StatisticRegistry registry_;
  v1::ModelStructure structure_;
  bool has_structure_ = false;
  std::vector<v1::Event> events_;
  std::map<std::tuple<std::string, int, uint32_t>, size_t> event_index_;
  // A law may ask for a column at any time, and asking does not change what the run is. A deque,
  // so that columns stay where they are when others are added.
  mutable std::deque<StoredColumn> columns_;
  mutable std::map<std::pair<std::string, int>, ColumnIndex> column_of_;
};

}  // namespace tycho::analyzer
