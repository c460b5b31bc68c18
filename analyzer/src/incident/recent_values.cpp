#include "src/incident/recent_values.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace tycho::analyzer {

void RecentValues::observe(const RunContext& context, const Frame& frame) {
  const bool divided = *quantity_->divisor != '\0';
  if (!resolved_) {
    resolved_ = true;
    column_ = context.column(quantity_->statistic, quantity_->scope);
    if (divided) divisor_ = context.column(quantity_->divisor, quantity_->scope);
  }
  if (frame.is_after_step()) return;
  // A resumed run goes back: what came after that step is another course.
  while (!rows_.empty() && rows_.back().step >= frame.step()) rows_.pop_back();
  const ColumnValues values = frame.column(column_);
  if (!values.present) return;
  const ColumnValues divisors = divided ? frame.column(divisor_) : ColumnValues{};
  if (divided && !divisors.present) return;
  entities_ = std::max(entities_, values.size);
  const size_t most = std::clamp(
      kMostCells / (watched_quantities().size() * std::max<size_t>(1, entities_)), kFewest, kMost);
  Row row;
  while (rows_.size() >= most) {
    row = std::move(rows_.front());
    rows_.pop_front();
  }
  row.step = frame.step();
  row.value.assign(values.size, std::numeric_limits<float>::quiet_NaN());
  for (size_t i = 0; i < values.size; ++i) {
    double value = values[i];
    if (!is_measured(value)) continue;
    if (divided) {
      const double divisor = divisors[i];
      if (!is_measured(divisor) || divisor == 0) continue;
      value /= divisor;
    }
    row.value[i] = static_cast<float>(on_scale(*quantity_, value));
  }
  rows_.push_back(std::move(row));
}

std::vector<Observation> RecentValues::of(size_t entity) const {
  std::vector<Observation> result;
  for (const Row& row : rows_) {
    if (entity >= row.value.size() || std::isnan(row.value[entity])) continue;
    result.push_back({row.step, row.value[entity]});
  }
  return result;
}

}  // namespace tycho::analyzer
