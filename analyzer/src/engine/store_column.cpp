#include "src/engine/store_column.h"

#include <cstddef>
#include <limits>

namespace tycho::analyzer {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
/// Positions of a list come from a file: no list is longer.
constexpr uint32_t kLongestList = 4096;

bool lengths_agree(const v1::Column& column) {
  const int count = column.value_size();
  const bool values = column.scope() == v1::SCOPE_RUN ? count == 1 && column.entity_size() <= 1
                                                      : count == column.entity_size();
  return values && (column.standard_error_size() == 0 || column.standard_error_size() == count);
}

/// Whether the column has every one of `size` entities of the run, in order.
bool is_dense(const v1::Column& column, size_t size, const RunIds& ids) {
  if (column.scope() == v1::SCOPE_RUN || size == 0 ||
      static_cast<size_t>(column.value_size()) != size) {
    return false;
  }
  const bool identical =
      column.scope() == v1::SCOPE_LAYER ? ids.layers_identical() : ids.parameters_identical();
  if (!identical) return false;
  const uint32_t* entity = column.entity().data();
  uint32_t difference = 0;
  for (uint32_t i = 0; i < static_cast<uint32_t>(size); ++i) difference |= entity[i] ^ i;
  return difference == 0;
}

/// Values at positions of a list, which grows as they need it. False: some are too far behind.
bool store_list(const v1::Column& column, StoredColumn* stored) {
  const bool has_error = column.standard_error_size() > 0;
  bool complete = true;
  for (int i = 0; i < column.value_size(); ++i) {
    const uint32_t position = column.entity(i);
    if (position >= kLongestList) {
      complete = false;
      continue;
    }
    const size_t length = size_t{position} + 1;
    if (stored->value.size() < length) stored->value.resize(length, not_measured());
    stored->value[position] = column.value(i);
    if (!has_error) continue;
    if (stored->standard_error.size() < length) stored->standard_error.resize(length, kNan);
    stored->standard_error[position] = column.standard_error(i);
  }
  stored->standard_error.resize(stored->value.size(), kNan);
  return complete;
}

/// Values of layers or parameters in any order. False: the segment does not have some of them.
bool store_entities(const v1::Column& column, const RunIds& ids, StoredColumn* stored) {
  const bool is_layer = column.scope() == v1::SCOPE_LAYER;
  const bool has_error = column.standard_error_size() > 0;
  bool complete = true;
  for (int i = 0; i < column.value_size(); ++i) {
    const uint32_t entity =
        is_layer ? ids.layer(column.entity(i)) : ids.parameter(column.entity(i));
    if (entity == kNoEntity) {
      complete = false;
      continue;
    }
    stored->value[entity] = column.value(i);
    if (has_error) stored->standard_error[entity] = column.standard_error(i);
  }
  return complete;
}

}  // namespace

void store_column(const v1::Column& column, const RunIds& ids, uint64_t frame, KnownRun* run,
                  IgnoredRecords* ignored) {
  const v1::Scope scope = column.scope();
  if (scope != v1::SCOPE_RUN && scope != v1::SCOPE_LAYER && scope != v1::SCOPE_PARAMETER &&
      scope != v1::SCOPE_INDEX) {
    ++ignored->malformed;
    return;
  }
  const ColumnIndex index = ids.column(column.statistic(), scope);
  if (index == kNoColumn) {
    ++ignored->unknown_statistic;
    return;
  }
  if (ids.other_reference(column.statistic())) {
    ++ignored->other_reference;
    return;
  }
  if (!lengths_agree(column)) {
    ++ignored->malformed;
    return;
  }
  StoredColumn& stored = run->stored(index);
  const size_t size = run->entities(scope);
  const bool has_error = column.standard_error_size() > 0;
  // The common case, all entities in order, is a copy.
  if (is_dense(column, size, ids)) {
    stored.value.assign(column.value().data(), column.value().data() + size);
    stored.value_frame = frame;
    if (has_error) {
      const double* error = column.standard_error().data();
      stored.standard_error.assign(error, error + size);
      stored.standard_error_frame = frame;
    }
    return;
  }
  if (stored.value_frame != frame) {
    stored.value.assign(size, not_measured());
    stored.value_frame = frame;
  }
  if (has_error && stored.standard_error_frame != frame) {
    stored.standard_error.assign(size, kNan);
    stored.standard_error_frame = frame;
  }
  bool complete = true;
  if (scope == v1::SCOPE_RUN) {
    stored.value[0] = column.value(0);
    if (has_error) stored.standard_error[0] = column.standard_error(0);
  } else if (scope == v1::SCOPE_INDEX) {
    complete = store_list(column, &stored);
  } else {
    complete = store_entities(column, ids, &stored);
  }
  if (!complete) ++ignored->malformed;
}

}  // namespace tycho::analyzer
