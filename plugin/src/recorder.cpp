#include "recorder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

namespace tycho {
namespace {

/// Readers expect ascending entities; a probe may have recorded in another order.
void sort_entities(v1::Column* column) {
  const auto& entities = column->entity();
  if (std::is_sorted(entities.begin(), entities.end())) return;
  std::vector<int> order(static_cast<size_t>(entities.size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return entities[a] < entities[b]; });
  v1::Column sorted = *column;
  for (size_t i = 0; i < order.size(); ++i) {
    const int to = static_cast<int>(i);
    sorted.set_entity(to, column->entity(order[i]));
    sorted.set_value(to, column->value(order[i]));
    if (column->standard_error_size() > 0) {
      sorted.set_standard_error(to, column->standard_error(order[i]));
    }
  }
  *column = std::move(sorted);
}

}  // namespace

void RecordBuilder::run(const std::string& statistic, double value, double standard_error) {
  add(statistic, v1::SCOPE_RUN, 0, value, standard_error);
}

void RecordBuilder::layer(const std::string& statistic, uint32_t layer, double value,
                          double standard_error) {
  add(statistic, v1::SCOPE_LAYER, layer, value, standard_error);
}

void RecordBuilder::parameter(const std::string& statistic, uint32_t parameter, double value,
                              double standard_error) {
  add(statistic, v1::SCOPE_PARAMETER, parameter, value, standard_error);
}

void RecordBuilder::index(const std::string& statistic, uint32_t position, double value,
                          double standard_error) {
  add(statistic, v1::SCOPE_INDEX, position, value, standard_error);
}

void RecordBuilder::event(v1::Event::Kind kind, const std::string& code, const std::string& message,
                          v1::Scope scope, uint32_t entity) {
  say_(kind, code, message, scope, entity);
}

void RecordBuilder::add(const std::string& statistic, v1::Scope scope, uint32_t entity,
                        double value, double standard_error) {
  const auto id = ids_.find(statistic);
  if (id == ids_.end()) {
    throw std::invalid_argument("statistic \"" + statistic + "\" is none of the probe's own");
  }
  const uint64_t key = uint64_t{id->second} << 8 | static_cast<uint64_t>(scope);
  const auto [entry, fresh] = columns_.emplace(key, record_.column_size());
  if (fresh) {
    v1::Column* column = record_.add_column();
    column->set_statistic(id->second);
    column->set_scope(scope);
  }
  v1::Column* column = record_.mutable_column(entry->second);
  if (scope == v1::SCOPE_RUN && column->value_size() > 0) {
    throw std::invalid_argument("statistic \"" + statistic + "\" was recorded twice");
  }
  if (scope != v1::SCOPE_RUN) column->add_entity(entity);
  column->add_value(value);
  if (column->standard_error_size() == 0 && std::isnan(standard_error)) return;
  while (column->standard_error_size() + 1 < column->value_size()) {
    column->add_standard_error(kUnknown);
  }
  column->add_standard_error(standard_error);
}

v1::Record RecordBuilder::take() {
  for (v1::Column& column : *record_.mutable_column()) sort_entities(&column);
  return std::move(record_);
}

}  // namespace tycho
