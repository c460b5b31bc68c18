#include "schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace tycho {
namespace {

constexpr double kFixedPart = 0.5;  // of the budget, that fixed intervals may take from the others
// Of the budget, that observations that nobody is behind with may take while others have fewer.
constexpr double kBeyondPart = 0.1;
// The first observation ranks as if it cost this part, because it tells more than any further one.
// The part grows to 1 where it costs more than kFirstOfAllowance of all that may have been spent so
// far: else a short run has one observation of each expensive probe, and of none what laws need.
constexpr double kFirstObservation = 0.125;
constexpr double kFirstOfAllowance = 0.05;
constexpr uint64_t kWarmingUp = 2;  // steps behind the first
// Steps that an observation of a probe is taken to cost, once there was one, that is not expensive.
constexpr double kCheap = 1;
// Steps before one that had no value is tried again, doubled this often at most.
constexpr int64_t kFirstRest = 16;
constexpr int kMostRests = 40;
// Least distance of observations that catch up, relative to that of per_decade of them.
constexpr double kCatchingUp = 0.25;
constexpr uint64_t kMostHookedInARow = 63;
// Of the budget, that cheap probes have whatever was spent: for what their laws need, and in all.
constexpr double kNeededFloorPart = 0.5;
constexpr double kFloorPart = 0.2;
constexpr double kGuaranteedPerDecade = 24;

/// Whether `step` is one of about `number` steps per factor of ten.
bool log_spaced_at(int64_t step, double number) {
  return step <= 1 || std::floor(number * std::log10(static_cast<double>(step))) >
                          std::floor(number * std::log10(static_cast<double>(step - 1)));
}

}  // namespace

void RecentMedian::add(double value) {
  values_[count_ % kWindow] = value;
  ++count_;
}

double RecentMedian::median() const {
  const size_t size = std::min(count_, kWindow);
  if (size == 0) return 0;
  std::array<double, kWindow> sorted = values_;
  std::nth_element(sorted.begin(), sorted.begin() + (size - 1) / 2, sorted.begin() + size);
  return sorted[(size - 1) / 2];
}

size_t Scheduler::add(ProbeSchedule schedule) {
  Entry entry;
  entry.schedule = schedule;
  probes_.push_back(entry);
  return probes_.size() - 1;
}

void Scheduler::due(int64_t step, bool first, std::vector<size_t>* probes, const Can& can) const {
  probes->clear();
  std::vector<Due> due(probes_.size(), Due::kNot);
  for (size_t i = 0; i < probes_.size(); ++i) {
    const Entry& entry = probes_[i];
    if (entry.disabled || (can && !can(i))) {
      due[i] = Due::kCannot;
      continue;
    }
    bool now = false;
    if (entry.schedule.every) now = step % *entry.schedule.every == 0;
    if (entry.schedule.log_spaced && !now)
      now = log_spaced_at(step, static_cast<double>(*entry.schedule.log_spaced));
    const bool expensive = !entry.measured && entry.schedule.expected_steps > 0;
    now = now || entry.goes_on(step) || (entry.free() && ((first && !expensive) || !budget_));
    if (now) due[i] = Due::kYes;
  }
  if (budget_ && (first || !wants_bare())) {
    due_by_floor(step, &due);
    due_by_budget(step, &due);
  }
  for (size_t i = 0; i < due.size(); ++i) {
    if (due[i] == Due::kYes) probes->push_back(i);
  }
  if (!probes->empty()) accompany(probes, can);
}

bool Scheduler::rests(const Entry& entry, int64_t step) const {
  return entry.barren > 0 && step - entry.last < kFirstRest << std::min(entry.barren, kMostRests);
}

void Scheduler::recorded(size_t probe, bool anything) {
  Entry& entry = probes_[probe];
  const bool barren = !anything && entry.schedule.expected_steps > 0;
  entry.barren = barren ? entry.barren + 1 : 0;
}

double Scheduler::wanted(const Entry& entry, int64_t step) const {
  const auto since = static_cast<double>(first_step_ < 0 ? 0 : step - first_step_);
  return entry.schedule.per_decade * std::log10(1 + since);
}

bool Scheduler::behind(const Entry& entry, int64_t step) const {
  if (static_cast<double>(entry.observations) >= wanted(entry, step)) return false;
  // One that catches up does so over a stretch of the run too.
  const auto since = static_cast<double>(step - first_step_);
  const double distance = since * (std::log(10.0) / entry.schedule.per_decade) * kCatchingUp;
  return entry.observations == 0 || static_cast<double>(step - entry.last) >= distance;
}

double Scheduler::rank(const Entry& entry, int64_t step) const {
  double part = 1;
  if (entry.observations == 0) {
    const double large = cost_of(entry) / std::max(kFirstOfAllowance * allowance(), 1e-300);
    part = entry.schedule.is_reference
               ? 0
               : std::clamp(kFirstObservation * large, kFirstObservation, 1.0);
  } else if (entry.schedule.per_decade < ProbeSchedule::kForAVerdict) {
    part = static_cast<double>(entry.observations) / wanted(entry, step);
  }
  return part * cost_of(entry) / (entry.schedule.per_decade * entry.schedule.laws);
}

void Scheduler::due_by_floor(int64_t step, std::vector<Due>* due) const {
  const auto since = first_step_ < 0 ? 0 : step - first_step_;
  double left = kFloorPart * allowance() - floor_spent_;
  double left_for_needed = kNeededFloorPart * allowance() - floor_spent_;
  for (size_t i = 0; i < probes_.size(); ++i) {
    const Entry& entry = probes_[i];
    if ((*due)[i] != Due::kNot || !entry.cheap()) continue;
    const double cost = cost_of(entry);
    const bool affordable = (step % entry.floor_interval == 0 && cost <= left) ||
                            (behind(entry, step) && cost <= left_for_needed);
    if (!affordable && !(entry.schedule.guaranteed && log_spaced_at(since, kGuaranteedPerDecade)))
      continue;
    (*due)[i] = Due::kYes;
    left -= cost;
    left_for_needed -= cost;
  }
}

void Scheduler::due_by_budget(int64_t step, std::vector<Due>* due) const {
  // What fixed intervals cost beyond their part of the budget is the user's wish.
  const double wished = std::max(fixed_spent_ - kFixedPart * allowance(), 0.0);
  double left = allowance() - (spent_ - wished + excess_ + reserved_);
  if (left < 0) return;  // In debt, as at most steps after an expensive observation.
  const auto open = [&](size_t i) {
    return (*due)[i] == Due::kNot && probes_[i].free() && !rests(probes_[i], step);
  };
  std::vector<std::pair<double, size_t>> queue;
  for (size_t i = 0; i < probes_.size(); ++i) {
    const Entry& entry = probes_[i];
    if (!open(i) || !behind(entry, step)) continue;
    queue.emplace_back(rank(entry, step), i);
  }
  std::sort(queue.begin(), queue.end());
  bool saving = false;
  for (const auto& [rank, i] : queue) {
    const double cost = cost_of(probes_[i]);
    saving = cost > left;
    if (saving) break;
    (*due)[i] = Due::kYes;
    left -= cost;
  }
  double beyond = saving ? kBeyondPart * allowance() - beyond_spent_ : left;
  for (size_t i = 0; i < probes_.size(); ++i) {
    if (!open(i) || step % probes_[i].interval != 0) continue;
    const double cost = cost_of(probes_[i]);
    if (cost > left || cost > beyond) continue;
    (*due)[i] = Due::kYes;
    left -= cost;
    beyond -= cost;
  }
}

void Scheduler::accompany(std::vector<size_t>* probes, const Can& can) const {
  using Accompanies = ProbeSchedule::Accompanies;
  const bool evaluated = std::any_of(probes->begin(), probes->end(), [&](size_t i) {
    return probes_[i].schedule.evaluates_probe_loss;
  });
  for (size_t i = 0; i < probes_.size(); ++i) {
    const Accompanies which = probes_[i].schedule.accompanies;
    const std::optional<size_t>& one = probes_[i].schedule.accompanies_probe;
    const bool with_it =
        which == Accompanies::kAll || (which == Accompanies::kProbeLoss && evaluated) ||
        (one && probes_[*one].free() && std::binary_search(probes->begin(), probes->end(), *one));
    if (!with_it) continue;
    if (probes_[i].disabled || (can && !can(i))) continue;
    const auto position = std::lower_bound(probes->begin(), probes->end(), i);
    if (position == probes->end() || *position != i) probes->insert(position, i);
  }
}

void Scheduler::step_took(double outside, Hooks hooks, double in_hooks) {
  elapsed_ += outside;
  excess_ += std::min(in_hooks, outside);
  last_slowdown_ = 0;
  ++steps_;
  if (hooks == Hooks::kNone) bare_.add(outside);
  hooked_in_a_row_ = hooks == Hooks::kNone ? 0 : hooked_in_a_row_ + 1;
  // The first steps of a run compile and warm up what they use.
  if (hooks != Hooks::kNone && steps_ > kWarmingUp) {
    Hooked& alike = hooked_[static_cast<size_t>(hooks)];
    ++alike.waiting;
    alike.outside.add(outside - in_hooks);
  }
  if (!comparable()) return;
  for (Hooked& alike : hooked_) {
    if (alike.waiting == 0) continue;
    // One slow step says little: the median over recent steps is charged.
    const double each = std::max(alike.outside.median() - bare_.median(), 0.0);
    const double all = each * static_cast<double>(alike.waiting);
    alike.waiting = 0;
    slowdown_ += all;
    excess_ += all;
    if (&alike == &hooked_[static_cast<size_t>(hooks)]) last_slowdown_ = each;
  }
}

bool Scheduler::slowdown_known() const {
  return comparable() && std::all_of(hooked_.begin(), hooked_.end(),
                                     [](const Hooked& alike) { return alike.waiting == 0; });
}

bool Scheduler::wants_bare() const {
  return budget_ && (hooked_in_a_row_ >= kMostHookedInARow ||
                     (hooked_in_a_row_ > 0 && !comparable() && steps_ >= kBareSteps));
}

void Scheduler::take(int64_t step, const std::vector<size_t>& probes) {
  if (first_step_ < 0) first_step_ = step;
  reserved_ = 0;
  for (const size_t i : probes) {
    Entry& entry = probes_[i];
    const double cost = cost_of_step(entry);
    if (entry.goes_on(step)) {
      --entry.to_come;
    } else {
      entry.last_beyond = !behind(entry, step);
      if (entry.observations == 0 || entry.last != step) ++entry.observations;
      entry.to_come = entry.schedule.steps_in_a_row - 1;
    }
    entry.last = step;
    if (std::isfinite(cost)) reserved_ += cost;
  }
}

void Scheduler::observed(size_t probe, double seconds) {
  Entry& entry = probes_[probe];
  if (!entry.free()) {
    fixed_spent_ += seconds;
  } else if (entry.cheap() && entry.measured > 0) {
    floor_spent_ += seconds;
  }
  if (entry.free() && entry.last_beyond) beyond_spent_ += seconds;
  // The first observations are slower than the rest: forget them.
  entry.cost = entry.measured > 1 ? 0.7 * entry.cost + 0.3 * seconds : seconds;
  ++entry.measured;
  plan();
}

double Scheduler::cost_of_step(const Entry& entry) const {
  const double expected = entry.schedule.expected_steps;
  if (entry.measured > 1 || (entry.measured == 0 && expected == 0)) return entry.cost;
  if (steps_ == 0) {
    return entry.measured > 0 ? entry.cost : std::numeric_limits<double>::infinity();
  }
  const double likely = std::max(expected, kCheap) * bare_step();
  return entry.measured > 0 ? std::min(entry.cost, likely) : likely;
}

double Scheduler::bare_step() const {
  return bare_.count() == 0 ? bare_seconds() / static_cast<double>(steps_) : bare_.median();
}

double Scheduler::allowance() const {
  const double early = std::min(bare_seconds(), early_seconds_);
  return std::max(*budget_, early_) * early + *budget_ * (bare_seconds() - early);
}

double Scheduler::share_now() const {
  return bare_seconds() < early_seconds_ ? std::max(*budget_, early_) : *budget_;
}

void Scheduler::plan() {
  if (!budget_ || steps_ == 0) return;
  const double step = bare_step();
  const double share = share_now();
  double allowed = share * step;
  std::vector<std::pair<double, int64_t*>> open;
  std::vector<std::pair<double, int64_t*>> cheap;
  for (Entry& entry : probes_) {
    if (entry.disabled) continue;
    if (entry.schedule.every) {
      allowed -= cost_of(entry) / static_cast<double>(*entry.schedule.every);
    }
    if (entry.free()) open.emplace_back(cost_of(entry), &entry.interval);
    if (entry.cheap()) cheap.emplace_back(cost_of(entry), &entry.floor_interval);
  }
  Scheduler::share(std::move(open), std::max(allowed, (1 - kFixedPart) * share * step));
  Scheduler::share(std::move(cheap), kFloorPart * share * step);
}

void Scheduler::share(std::vector<std::pair<double, int64_t*>> open, double allowed) {
  std::sort(open.begin(), open.end(),
            [](const auto& one, const auto& other) { return one.first < other.first; });
  size_t sharing = open.size();
  double left = allowed;
  constexpr int64_t kLongest = int64_t{1} << 40;
  for (const auto& [cost, interval] : open) {
    const double mine = left / static_cast<double>(sharing--);
    *interval = 1;
    while (*interval < kLongest && !(cost <= mine * static_cast<double>(*interval))) *interval *= 2;
    left -= cost / static_cast<double>(*interval);
  }
}

}  // namespace tycho
