#include "src/incident/incident_watch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {
namespace {

/// The step of the incident that an alarm tells of: the begin of a break of the loss, or the first
/// loss that was not finite; -1: it is none that was looked at when it happened.
int64_t begin_of(const LossAlarm& alarm, const LossCourse& course) {
  const LossBreak* open = course.open_break();
  if (alarm.code == "loss_diverged") return open != nullptr ? open->begin : -1;
  if (alarm.code == "loss_not_finite" && open != nullptr && open->begin <= alarm.at.step)
    return open->begin;
  for (const LossBreak& each : course.breaks()) {
    const bool holds = each.begin <= alarm.at.step && alarm.at.step < each.back;
    if (holds && alarm.code != "loss_jumped") return each.begin;
  }
  return alarm.at.step;
}

bool is_explained(const std::string& code) {
  return code == "loss_diverged" || code == "loss_jumped" || code == "loss_spikes" ||
         code == "loss_not_finite";
}

}  // namespace

IncidentWatch::IncidentWatch() {
  for (const Quantity& each : watched_quantities()) recent_.emplace_back(each);
}

void IncidentWatch::observe(const RunContext& context, const Frame& frame,
                            const LossCourse& course) {
  for (RecentValues& each : recent_) each.observe(context, frame);
  if (course.observed() == observed_) return;
  observed_ = course.observed();
  if (open_ >= 0 && ++since_ >= kAfter) {
    keep(look_back());
    open_ = -1;
  }
  const LossBreak* broken = course.open_break();
  const bool finite = std::isfinite(course.last().value);
  const bool breaks = broken != nullptr && broken->begin != break_;
  // The first that is not finite of a row; within a break it belongs to that.
  const bool vanishes = !finite && was_finite_ && broken == nullptr;
  was_finite_ = finite;
  if (breaks) break_ = broken->begin;
  if (open_ >= 0 || (!breaks && !vanishes)) return;
  open_ = frame.step();
  open_finite_ = finite;
  since_ = 0;
}

Incident IncidentWatch::look_back() const {
  Incident result;
  result.step = open_;
  result.finite = open_finite_;
  const std::vector<Observation> losses = recent_.front().of(0);
  const auto after = std::find_if(losses.begin(), losses.end(),
                                  [&](const Observation& each) { return each.step > open_; });
  const auto before = static_cast<size_t>(after - losses.begin());
  const size_t window = std::min(kWindow, before / 4);
  result.from = before > 0 ? losses[before - std::max<size_t>(1, window)].step : open_;
  MovementQuery query;
  query.from = result.from;
  query.incident = open_;
  size_t series = 0;
  for (const RecentValues& each : recent_) series += each.entities();
  query.comparisons = static_cast<double>(std::max<size_t>(1, series));
  for (size_t q = 0; q < recent_.size(); ++q) {
    const Quantity& quantity = watched_quantities()[q];
    query.least = quantity.least;
    query.rises_only = quantity.rises_only;
    query.logarithms = quantity.scale != Quantity::Scale::kPlain;
    for (size_t i = 0; i < recent_[q].entities(); ++i) {
      const std::vector<Observation> seen = recent_[q].of(i);
      if (seen.empty()) continue;
      const Movement movement = find_movement(seen, query);
      const bool compared = std::isfinite(movement.usual);
      ++(compared ? result.compared : result.too_few);
      if (movement.has_moved()) result.movers.push_back({q, static_cast<uint32_t>(i), movement});
    }
  }
  std::stable_sort(result.movers.begin(), result.movers.end(), [](const Mover& a, const Mover& b) {
    return a.movement.moved < b.movement.moved;
  });
  result.size = std::numeric_limits<double>::infinity();
  if (open_finite_ && before > 0) {
    std::vector<double> values;
    for (size_t i = 0; i < before; ++i) values.push_back(losses[i].value);
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(before / 2),
                     values.end());
    result.size = losses[before - 1].value - values[before / 2];
  }
  return result;
}

void IncidentWatch::keep(Incident incident) {
  kept_.push_back(std::move(incident));
  if (kept_.size() <= kMostIncidents) return;
  // The first that was not finite stays.
  kept_.erase(
      std::min_element(kept_.begin(), kept_.end(),
                       [](const Incident& a, const Incident& b) { return a.size < b.size; }));
}

std::vector<Incident> IncidentWatch::incidents(const LossCourse& course) const {
  std::vector<Incident> known = kept_;
  if (open_ >= 0) known.push_back(look_back());
  std::vector<Incident> result;
  for (const LossAlarm& alarm : loss_alarms(course)) {
    if (!is_explained(alarm.code)) continue;
    const int64_t begin = begin_of(alarm, course);
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&](const Incident& each) { return each.step == begin; });
    if (found == known.end()) continue;
    const bool again = std::any_of(result.begin(), result.end(),
                                   [&](const Incident& each) { return each.step == found->step; });
    if (again) continue;
    result.push_back(*found);
    result.back().code = alarm.code;
  }
  std::sort(result.begin(), result.end(),
            [](const Incident& a, const Incident& b) { return a.step < b.step; });
  return result;
}

}  // namespace tycho::analyzer
