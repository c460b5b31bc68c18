#include "src/engine/known_run.h"

#include <algorithm>

namespace tycho::analyzer {
namespace {

constexpr size_t kMostEvents = 4096;

}  // namespace

bool KnownRun::recorded(const std::string& statistic) const {
  return std::any_of(columns_.begin(), columns_.end(), [&](const StoredColumn& stored) {
    return stored.value_frame > 0 && stored.statistic == statistic;
  });
}

ColumnIndex KnownRun::column(const std::string& statistic, v1::Scope scope) const {
  const auto [found, inserted] =
      column_of_.try_emplace(std::make_pair(statistic, static_cast<int>(scope)),
                             static_cast<ColumnIndex>(columns_.size()));
  if (inserted) {
    columns_.emplace_back();
    columns_.back().statistic = statistic;
    columns_.back().scope = scope;
  }
  return found->second;
}

size_t KnownRun::entities(v1::Scope scope) const {
  switch (scope) {
    case v1::SCOPE_LAYER:
      return static_cast<size_t>(model_.layer_size());
    case v1::SCOPE_PARAMETER:
      return static_cast<size_t>(model_.parameter_size());
    case v1::SCOPE_INDEX:
      return 0;
    default:
      return 1;
  }
}

void KnownRun::set_structure(v1::ModelStructure structure) {
  structure_ = std::move(structure);
  has_structure_ = true;
}

void KnownRun::add_event(v1::Event event) {
  const auto key = std::make_tuple(event.code(), static_cast<int>(event.scope()), event.entity());
  const auto found = event_index_.find(key);
  if (found != event_index_.end()) {
    v1::Event& known = events_[found->second];
    known.set_count(std::max(known.count(), event.count()));
    return;
  }
  if (events_.size() >= kMostEvents) return;
  event_index_.emplace(key, events_.size());
  events_.push_back(std::move(event));
}

std::string RunContext::scope_name(v1::Scope scope, uint32_t entity) const {
  if (scope == v1::SCOPE_LAYER && entity < static_cast<uint32_t>(model().layer_size())) {
    return "layer:" + model().layer(static_cast<int>(entity)).path();
  }
  if (scope == v1::SCOPE_PARAMETER && entity < static_cast<uint32_t>(model().parameter_size())) {
    return "param:" + model().parameter(static_cast<int>(entity)).name();
  }
  if (scope == v1::SCOPE_INDEX) return "index:" + std::to_string(entity);
  return "run";
}

}  // namespace tycho::analyzer
