#include "series_store.h"

#include <algorithm>
#include <cmath>

namespace tycho::analyzer {
namespace {

/// More lines than that are no chart; the list comes from a file and may be long.
constexpr size_t kMostPositions = 64;

void add(double value, double error, Bucket* bucket) {
  if (!std::isfinite(value)) {
    ++bucket->non_finite;
    return;
  }
  bucket->min = bucket->count == 0 ? value : std::min(bucket->min, value);
  bucket->max = bucket->count == 0 ? value : std::max(bucket->max, value);
  bucket->sum += value;
  ++bucket->count;
  if (std::isfinite(error)) {
    bucket->error_square += error * error;
    ++bucket->errors;
  }
}

void merge(const Bucket& from, Bucket* into) {
  if (from.count > 0) {
    into->min = into->count == 0 ? from.min : std::min(into->min, from.min);
    into->max = into->count == 0 ? from.max : std::max(into->max, from.max);
    into->sum += from.sum;
    into->count += from.count;
  }
  into->non_finite += from.non_finite;
  into->error_square += from.error_square;
  into->errors += from.errors;
}

}  // namespace

void SeriesStore::Cells::resize(size_t entities) {
  cell.resize(entities);
  if (!errors.empty()) errors.resize(entities);
  if (!non_finite.empty()) non_finite.resize(entities);
}

Bucket SeriesStore::Cells::at(size_t entity) const {
  Bucket bucket;
  if (entity >= size()) return bucket;
  bucket.min = cell[entity].min.value();
  bucket.max = cell[entity].max.value();
  bucket.count = cell[entity].count;
  bucket.sum = cell[entity].mean.value() * bucket.count;
  if (!errors.empty()) {
    bucket.error_square = errors[entity].square.value();
    bucket.errors = errors[entity].count;
  }
  if (!non_finite.empty()) bucket.non_finite = non_finite[entity];
  return bucket;
}

void SeriesStore::Cells::set(size_t entity, const Bucket& bucket) {
  Cell& into = cell[entity];
  into.min = ShortDouble(bucket.min);
  into.max = ShortDouble(bucket.max);
  into.mean = ShortDouble(bucket.count > 0 ? bucket.mean() : 0);
  into.count = bucket.count;
  if (bucket.errors > 0 && errors.empty()) errors.resize(size());
  if (!errors.empty()) errors[entity] = {ShortDouble(bucket.error_square), bucket.errors};
  if (bucket.non_finite > 0 && non_finite.empty()) non_finite.resize(size());
  if (!non_finite.empty()) non_finite[entity] = bucket.non_finite;
}

SeriesStore::SeriesStore(size_t capacity, size_t most_cells)
    : capacity_(std::max<size_t>(2, capacity / 2 * 2)), most_cells_(most_cells) {}

void SeriesStore::fit_capacity() {
  size_t series = 0;
  for (const Column& column : columns_) series += column.entities;
  while (capacity_ > kFewestStretches && capacity_ % 4 == 0 && series * capacity_ > most_cells_)
    capacity_ /= 2;
  while (bucket_ >= static_cast<int64_t>(capacity_)) halve();
}

// Columns for everything the registry defines; new ones after a resumed session brought a new
// registry.
void SeriesStore::prepare(const RunContext& context) {
  const v1::StatisticRegistry& registry = context.registry();
  if (prepared_for_ == &registry && prepared_statistics_ == registry.statistic_size()) return;
  prepared_for_ = &registry;
  prepared_statistics_ = registry.statistic_size();
  for (const auto& statistic : registry.statistic()) {
    for (const v1::Scope scope :
         {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER, v1::SCOPE_INDEX}) {
      const bool known = std::any_of(columns_.begin(), columns_.end(), [&](const Column& column) {
        return column.key.statistic == statistic.name() && column.key.scope == scope;
      });
      if (known) continue;
      Column column;
      column.key = {statistic.name(), scope};
      column.index = context.column(statistic.name(), scope);
      columns_.push_back(std::move(column));
    }
  }
}

void SeriesStore::observe(const RunContext& context, const Frame& frame) {
  prepare(context);
  if (bucket_ < 0) {
    first_step_ = frame.step();
    bucket_ = 0;
  }
  // A resumed run goes back in time: its steps join the bucket that is open.
  const uint64_t since = frame.step() < first_step_ ? 0
                                                    : static_cast<uint64_t>(frame.step()) -
                                                          static_cast<uint64_t>(first_step_);
  // At width 1 a hostile step may lie further away than a bucket's number can say.
  while (since / static_cast<uint64_t>(width_) > uint64_t{1} << 62) halve();
  const auto bucket =
      std::max(bucket_, static_cast<int64_t>(since / static_cast<uint64_t>(width_)));
  if (bucket != bucket_) {
    close_bucket();
    bucket_ = bucket;
    while (bucket_ >= static_cast<int64_t>(capacity_)) halve();
  }
  bool more = false;
  for (Column& column : columns_) {
    const ColumnValues values = frame.column(column.index);
    if (!values.present) continue;
    const size_t size =
        column.key.scope == v1::SCOPE_INDEX ? std::min(values.size, kMostPositions) : values.size;
    if (column.entities < size) {
      column.entities = size;
      column.open.resize(size);
      more = true;
    }
    for (size_t i = 0; i < size; ++i) {
      if (!is_measured(values.value[i])) continue;
      const double error =
          values.standard_error != nullptr ? values.standard_error[i] : not_measured();
      add(values.value[i], error, &column.open[i]);
    }
  }
  if (more) fit_capacity();
}

void SeriesStore::close_bucket() {
  const auto position = static_cast<size_t>(bucket_);
  for (Column& column : columns_) {
    if (column.entities == 0) continue;
    if (column.closed.size() <= position) column.closed.resize(position + 1);
    Cells& into = column.closed[position];
    if (into.size() < column.entities) into.resize(column.entities);
    for (size_t i = 0; i < column.entities; ++i) {
      const Bucket& open = column.open[i];
      if (open.count == 0 && open.non_finite == 0) continue;
      Bucket merged = into.at(i);
      merge(open, &merged);
      into.set(i, merged);
    }
    std::fill(column.open.begin(), column.open.end(), Bucket{});
  }
  used_ = std::max(used_, position + 1);
}

void SeriesStore::halve() {
  for (Column& column : columns_) {
    for (size_t i = 0; i < column.closed.size(); ++i) {
      if (i % 2 == 0) {
        if (i != i / 2) column.closed[i / 2] = std::move(column.closed[i]);
        continue;
      }
      Cells& into = column.closed[i / 2];
      const Cells from = std::move(column.closed[i]);
      if (into.size() < from.size()) into.resize(from.size());
      for (size_t j = 0; j < from.size(); ++j) {
        Bucket merged = into.at(j);
        merge(from.at(j), &merged);
        into.set(j, merged);
      }
    }
    column.closed.resize((column.closed.size() + 1) / 2);
  }
  used_ = (used_ + 1) / 2;
  width_ *= 2;
  bucket_ /= 2;
}

void SeriesStore::finish() {
  if (bucket_ < 0) return;
  close_bucket();
  recorded_.clear();
  for (const Column& column : columns_) {
    if (column.entities > 0) recorded_.emplace_back(column.key, column.entities);
  }
}

const SeriesStore::Column* SeriesStore::find(const Key& key) const {
  for (const Column& column : columns_) {
    if (!(column.key < key) && !(key < column.key)) return &column;
  }
  return nullptr;
}

std::vector<Bucket> SeriesStore::series(const Key& key, size_t entity) const {
  std::vector<Bucket> result;
  if (const Column* column = find(key)) {
    result.reserve(column->closed.size());
    for (const Cells& cells : column->closed) result.push_back(cells.at(entity));
  }
  return result;
}

Bucket SeriesStore::last(const Key& key, size_t entity) const {
  if (const Column* column = find(key)) {
    for (auto cells = column->closed.rbegin(); cells != column->closed.rend(); ++cells) {
      const Bucket bucket = cells->at(entity);
      if (bucket.count > 0 || bucket.non_finite > 0) return bucket;
    }
  }
  return {};
}

}  // namespace tycho::analyzer
