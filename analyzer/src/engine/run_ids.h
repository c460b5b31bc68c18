#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "src/engine/known_run.h"
#include "tycho/v1/record.pb.h"
#include "tycho/v1/run.pb.h"

namespace tycho::analyzer {

/// Translates the ids of the segment that is read into those of the run. Segments number layers,
/// parameters and statistics as they like; in the run each name has the id under which it was first
/// seen, and what a later segment adds is appended. Until merge_model() and merge_registry() were
/// called no id is known. Memory: one entry per name that the run has seen, and per id of the
/// segment, of which those of statistics count only up to 65536, for ids come from a file.
class RunIds {
 public:
  /// Begins a segment's layers and parameters: adds them to `run`, whose description of each one
  /// becomes the segment's.
  void merge_model(const v1::ModelDescription& model, KnownRun* run);
  /// Begins a segment's statistics: adds them and their scopes to `run`, and makes their columns.
  /// `continues`: the segment is of a session that took up the run where it already had a past.
  void merge_registry(const v1::StatisticRegistry& registry, bool continues, KnownRun* run);

  /// By the segment's id, the run's; kNoEntity: the segment has no such layer or parameter.
  uint32_t layer(uint32_t id) const { return look_up(layer_of_, id); }
  uint32_t parameter(uint32_t id) const { return look_up(parameter_of_, id); }
  /// Whether the segment numbers its layers (parameters) as the run does.
  bool layers_identical() const { return layers_identical_; }
  bool parameters_identical() const { return parameters_identical_; }
  /// The run's column of the segment's statistic; kNoColumn: the registry does not define it. Any
  /// scope but unspecified.
  ColumnIndex column(uint32_t statistic, v1::Scope scope) const;
  /// Whether the statistic is relative to the first observation of its session, and this session's
  /// is another than the one that the run's earlier values are relative to.
  bool other_reference(uint32_t statistic) const {
    return statistic < other_reference_.size() && other_reference_[statistic];
  }

  /// The same message in the run's ids. Parameters, edges and facts of what the segment does not
  /// have are left out; an event of it has kNoEntity.
  v1::OptimizerSettings translated(const v1::OptimizerSettings& settings) const;
  v1::Event translated(const v1::Event& event) const;
  v1::ModelStructure translated(const v1::ModelStructure& structure) const;

 private:
  static uint32_t look_up(const std::vector<uint32_t>& table, uint32_t id) {
    return id < table.size() ? table[id] : kNoEntity;
  }

  // By name, the run's id.
  std::map<std::string, uint32_t> layer_index_;
  std::map<std::string, uint32_t> parameter_index_;
  std::map<std::string, uint32_t> statistic_index_;
  // By the segment's id, the run's.
  std::vector<uint32_t> layer_of_;
  std::vector<uint32_t> parameter_of_;
  bool layers_identical_ = true;
  bool parameters_identical_ = true;
  std::vector<ColumnIndex> column_of_;  // [statistic id * scopes + scope]
  std::vector<bool> other_reference_;   // [statistic id]
};

}  // namespace tycho::analyzer
