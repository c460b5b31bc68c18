#include "src/loss/held_out.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "src/statistics/level_change.h"

namespace tycho::analyzer {
namespace {

using Stretches = std::vector<LossStretch>;

constexpr size_t kFewestAfter = 6;
constexpr size_t kFewestOfWindow = 3;
constexpr size_t kMostOfWindow = 16;
constexpr size_t kWindows = 10;
constexpr size_t kFewestToFall = 24;
constexpr double kFewestPlaces = 8;  // overlapping ones of a short series
constexpr size_t kFewestToPart = 5;  // stretches
constexpr double kMiss = 0.05;
constexpr double kMissFall = 0.02;
constexpr double kSmallRise = 0.01;
constexpr double kSmallFall = 0.02;

std::vector<double> means(const Stretches& all, size_t begin) {
  std::vector<double> result;
  for (size_t i = begin; i < all.size(); ++i) result.push_back(all[i].mean);
  return result;
}

double mean(const Stretches& all, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += all[i].mean;
  return sum / static_cast<double>(end - begin);
}

Difference difference(const LevelChange& change, double confidence) {
  const double half = change.half_width(confidence);
  return {change.change(), change.change() - half, change.change() + half};
}

double start(const Stretches& all) { return all.size() < 3 ? all.front().mean : start_of(all); }

/// Of a level, or of what was fallen to it.
double small(double share, double level, double fallen) {
  const double size = std::fabs(level);
  return share * (fallen > 0 ? std::min(size, fallen) : size);
}

/// Stretches of the training loss that overlap these steps.
Part part_of(const Stretches& training, int64_t begin, int64_t end) {
  Part part{training.size(), training.size()};
  for (size_t i = 0; i < training.size(); ++i) {
    if (training[i].end < begin || training[i].begin > end) continue;
    if (part.begin == training.size()) part.begin = i;
    part.end = i + 1;
  }
  return part;
}

bool in_order(const Stretches& all) {
  for (size_t i = 1; i < all.size(); ++i) {
    if (all[i].begin <= all[i - 1].end) return false;
  }
  return true;
}

/// Of a part that is not empty.
std::pair<double, double> range_of(const Stretches& all, const Part& part) {
  const auto at = [&](size_t i) { return all.begin() + static_cast<std::ptrdiff_t>(i); };
  const auto [lowest, highest] = std::minmax_element(
      at(part.begin), at(part.end),
      [](const LossStretch& a, const LossStretch& b) { return a.mean < b.mean; });
  return {lowest->mean, highest->mean};
}

/// Whether a positive loss fell by so much that no estimate of its noise is needed: each of the
/// late stretches lies below each of the best ones, and on average below half of them. A loss that
/// decays by orders of magnitude has no level that an interval of a difference could be about.
bool levels_part(const Stretches& training, const Part& best, const Part& late) {
  if (best.size() < kFewestToPart || late.size() < kFewestToPart) return false;
  const auto [late_lowest, late_highest] = range_of(training, late);
  return late_lowest > 0 && late_highest < range_of(training, best).first &&
         mean(training, late.begin, late.end) < 0.5 * mean(training, best.begin, best.end);
}

void look_at_training(const Stretches& training, HeldOut* result) {
  if (!in_order(training)) return;
  const Part best = part_of(training, result->best_begin, result->best_end);
  const Part late = part_of(training, result->late_begin, result->last.step);
  if (late.begin == late.end) return;
  result->gap = result->late_level - mean(training, late.begin, late.end);
  if (best.begin == best.end || best.end > late.begin) return;
  result->training_best = mean(training, best.begin, best.end);
  result->training_late = mean(training, late.begin, late.end);
  const LevelChange change = level_change(means(training, best.begin), {0, best.size()},
                                          {late.begin - best.begin, late.end - best.begin});
  result->training_change = difference(change, 1 - kMiss);
  if (result->training_change.high < 0) result->training = HeldOut::Training::kFell;
  if (result->training_change.low > 0) result->training = HeldOut::Training::kRose;
  if (result->training != HeldOut::Training::kNotTold || !levels_part(training, best, late)) return;
  result->training = HeldOut::Training::kFell;
  result->training_change = {result->training_late - result->training_best, kUnknown, kUnknown};
}

void look_for_fall(const Stretches& all, HeldOut* result) {
  if (all.size() < kFewestToFall) return;
  const size_t begin = all.size() - std::max(kFewestOfLevelChange, all.size() / 3);
  const std::vector<double> values = means(all, begin);
  const size_t half = values.size() / 2;
  const LevelChange change = level_change(values, {0, half}, {values.size() - half, values.size()});
  const double width = change.half_width(1 - kMiss);
  result->fall = {-change.change(), -change.change() - width, -change.change() + width};
  result->fall_from = all[begin].begin;
  if (-change.change() - change.half_width(1 - kMissFall) >
      small(kSmallFall, change.after, result->start - change.after))
    result->course = HeldOut::Course::kFalling;
}

/// Where the mean of `width` stretches is lowest.
struct Lowest {
  size_t begin = 0;
  size_t width = 0;
  double level = 0;
  size_t end() const { return begin + width; }
};

Lowest lowest_level(const Stretches& all) {
  Lowest result;
  result.width = std::clamp(all.size() / kWindows, kFewestOfWindow, kMostOfWindow);
  result.level = mean(all, 0, result.width);
  for (size_t i = 1; i + result.width <= all.size(); ++i) {
    const double level = mean(all, i, i + result.width);
    if (level >= result.level) continue;
    result.level = level;
    result.begin = i;
  }
  return result;
}

size_t late_begin(const Stretches& all, const Lowest& lowest) {
  return all.size() - std::max(kFewestOfWindow, (all.size() - lowest.end()) / 3);
}

/// The rise since; NaN where too few came after.
Difference rise_since(const Stretches& all, const Lowest& lowest) {
  if (all.size() - lowest.end() < kFewestAfter) return {};
  const size_t late = late_begin(all, lowest);
  const double places =
      std::max(kFewestPlaces, static_cast<double>(all.size()) / static_cast<double>(lowest.width));
  return difference(level_change(means(all, lowest.begin), {0, lowest.width},
                                 {late - lowest.begin, all.size() - lowest.begin}),
                    1 - kMiss / places);
}

bool has_risen(const Stretches& all, const Lowest& lowest, const Difference& rise) {
  return rise.low > small(kSmallRise, lowest.level, start(all) - lowest.level);
}

bool had_risen(Stretches all, size_t values_ago) {
  if (all.size() < kFewestOfLevelChange + values_ago) return false;
  all.resize(all.size() - values_ago);
  const Lowest lowest = lowest_level(all);
  return has_risen(all, lowest, rise_since(all, lowest));
}

}  // namespace

std::optional<HeldOut> held_out(const LossCourse& course) {
  const Stretches all = course.held_out().stretches.all();
  if (all.empty()) return std::nullopt;
  HeldOut result;
  for (const LossStretch& each : all) {
    result.values += each.count;
    if (result.lowest.step < 0 || each.lowest.value < result.lowest.value)
      result.lowest = each.lowest;
  }
  result.last = std::isfinite(course.held_out().last.value)
                    ? course.held_out().last
                    : LossPoint{all.back().end, all.back().mean};
  result.start = start(all);
  if (all.size() < kFewestOfLevelChange) return result;
  const Lowest lowest = lowest_level(all);
  result.best_begin = all[lowest.begin].begin;
  result.best_end = all[lowest.end() - 1].end;
  result.best_level = lowest.level;
  for (size_t i = lowest.begin; i < lowest.end(); ++i) {
    result.best_values += all[i].count;
    if (result.best.step < 0 || all[i].lowest.value < result.best.value)
      result.best = all[i].lowest;
  }
  for (size_t i = lowest.end(); i < all.size(); ++i) result.after += all[i].count;
  const size_t late = late_begin(all, lowest);
  result.late_begin = all[late].begin;
  result.late_level = mean(all, late, all.size());
  result.rise = rise_since(all, lowest);
  const size_t tenth = std::max<size_t>(1, all.size() / 10);
  if (has_risen(all, lowest, result.rise) && had_risen(all, tenth / 2) && had_risen(all, tenth))
    result.course = HeldOut::Course::kRisen;
  look_at_training(course.stretches(), &result);
  if (result.course != HeldOut::Course::kRisen) look_for_fall(all, &result);
  return result;
}

}  // namespace tycho::analyzer
