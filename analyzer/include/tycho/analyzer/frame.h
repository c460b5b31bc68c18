#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "tycho/v1/record.pb.h"
#include "tycho/v1/run.pb.h"

namespace tycho::analyzer {

/// A statistic at a scope, resolved once to an index so that the hot path never compares strings.
using ColumnIndex = int32_t;
inline constexpr ColumnIndex kNoColumn = -1;

/// Represents "not measured here": a NaN that can be distinguished from a recorded one.
inline double not_measured() {
  const uint64_t bits = 0x7ff8000000746963;
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline bool is_measured(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits != 0x7ff8000000746963;
}

/// Values of one column at one step: dense over entity ids, not_measured() where there is none.
struct ColumnValues {
  const double* value = nullptr;
  const double* standard_error = nullptr;  ///< nullptr where not recorded
  /// Number of layers or parameters; 1 at scope run; at scope index the length of the list at this
  /// step.
  size_t size = 0;
  bool present = false;  ///< measured at this step
  double operator[](size_t entity) const {
    return present && entity < size ? value[entity] : __builtin_nan("");
  }
};

/// Everything recorded at one step.
class Frame {
 public:
  virtual ~Frame() = default;
  virtual int64_t step() const = 0;
  /// Holds what was measured after the step, at the weights it left (a held-out loss), and nothing
  /// else: a second frame of that step, behind the one that holds the step itself.
  virtual bool is_after_step() const { return false; }
  virtual ColumnValues column(ColumnIndex index) const = 0;
  /// Settings in force at this step, with parameter ids of RunContext::model(); nullptr before the
  /// first were recorded.
  virtual const v1::OptimizerSettings* optimizer() const = 0;
  /// Changes whenever optimizer() points to other settings: compare this, not the pointer.
  virtual uint64_t optimizer_version() const = 0;
};

/// The run as laws see it: its layers and columns. Ids apply to the whole run: if segments number
/// layers, parameters or statistics differently, the engine translates by name, and additions by a
/// later segment are appended.
class RunContext {
 public:
  virtual ~RunContext() = default;
  virtual const v1::RunDescription& run() const = 0;
  virtual const v1::ModelDescription& model() const = 0;
  virtual const v1::StatisticRegistry& registry() const = 0;
  virtual const v1::ModelStructure* structure() const = 0;  ///< nullptr until known
  /// One per (code, entity), with the last count.
  virtual const std::vector<v1::Event>& events() const = 0;
  /// Whether a value of this statistic has been recorded so far, at any scope.
  virtual bool recorded(const std::string& statistic) const = 0;
  /// Index of a statistic at a scope; the same for the whole run. Valid for names not (yet)
  /// recorded too: their values are never present.
  virtual ColumnIndex column(const std::string& statistic, v1::Scope scope) const = 0;
  /// "run", "layer:<path>", "param:<name>" or "index:<position>".
  std::string scope_name(v1::Scope scope, uint32_t entity) const;
};

}  // namespace tycho::analyzer
