#include "schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tycho {
namespace {

constexpr double kFixedPart = 0.5;  // of the budget, that fixed intervals may take from the others
constexpr uint64_t kMostHookedInARow = 63;

}  // namespace

void RecentMedian::add(double value) {
  values_[count_ % kWindow] = value;
  ++count_;
}

double RecentMedian::median() const {
  const size_t size = std::min(count_, kWindow);
  if (size == 0) return 0;
  std::array<double, kWindow> sorted = values_;
  std::nth_element(sorted.begin(), sorted.begin() + size / 2, sorted.begin() + size);
  return sorted[size / 2];
}

size_t Scheduler::add(ProbeSchedule schedule) {
  Entry entry;
  entry.schedule = schedule;
  probes_.push_back(entry);
  return probes_.size() - 1;
}

void Scheduler::due(int64_t step, bool first, std::vector<size_t>* probes) const {
  probes->clear();
  // What fixed intervals cost beyond their part of the budget is the user's wish.
  const double beyond = budget_ ? std::max(fixed_spent_ - kFixedPart * allowance(), 0.0) : 0;
  double reserved = 0;
  const bool bare = !first && wants_bare();
  for (size_t i = 0; i < probes_.size(); ++i) {
    const Entry& entry = probes_[i];
    if (entry.disabled) continue;
    bool fixed = false;
    if (entry.schedule.every) fixed = step % *entry.schedule.every == 0;
    if (entry.schedule.log_spaced && !fixed) {
      const auto number = static_cast<double>(*entry.schedule.log_spaced);
      fixed = step <= 1 || std::floor(number * std::log10(static_cast<double>(step))) >
                               std::floor(number * std::log10(static_cast<double>(step - 1)));
    }
    const bool free = entry.free();
    const bool dear = !entry.measured && entry.schedule.expected_steps > 0;
    bool take = fixed || (free && ((first && !dear) || !budget_));
    if (!take && free && !bare && step % entry.interval == 0) {
      const double cost = cost_of(entry);
      take = spent_ - beyond + excess_ + reserved + cost <= allowance();
      if (take) reserved += cost;
    }
    if (take) probes->push_back(i);
  }
  if (!probes->empty()) accompany(probes);
}

void Scheduler::accompany(std::vector<size_t>* probes) const {
  for (size_t i = 0; i < probes_.size(); ++i) {
    if (!probes_[i].schedule.accompanies || probes_[i].disabled) continue;
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
  if (hooks != Hooks::kNone) {
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

void Scheduler::observed(size_t probe, double seconds) {
  Entry& entry = probes_[probe];
  // The first observations are slower than the rest: forget them.
  entry.cost = entry.measured ? 0.7 * entry.cost + 0.3 * seconds : seconds;
  entry.measured = true;
  if (!entry.free()) fixed_spent_ += seconds;
  plan();
}

double Scheduler::cost_of(const Entry& entry) const {
  if (entry.measured || entry.schedule.expected_steps == 0) return entry.cost;
  if (steps_ == 0) return std::numeric_limits<double>::infinity();
  return entry.schedule.expected_steps * bare_step();
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
  std::vector<Entry*> open;
  for (Entry& entry : probes_) {
    if (entry.disabled) continue;
    if (!entry.measured) entry.cost = cost_of(entry);
    if (entry.schedule.every) allowed -= entry.cost / static_cast<double>(*entry.schedule.every);
    if (entry.free()) open.push_back(&entry);
  }
  allowed = std::max(allowed, (1 - kFixedPart) * share * step);
  // Cheap ones first: what they leave of their shares is divided among the rest.
  std::sort(open.begin(), open.end(), [](const Entry* a, const Entry* b) {
    return a->cost * b->schedule.share < b->cost * a->schedule.share;
  });
  double shares = 0;
  for (const Entry* entry : open) shares += entry->schedule.share;
  double left = allowed;
  constexpr int64_t kLongest = int64_t{1} << 40;
  for (Entry* entry : open) {
    const double mine = left * entry->schedule.share / shares;
    entry->interval = 1;
    while (entry->interval < kLongest &&
           !(entry->cost <= mine * static_cast<double>(entry->interval))) {
      entry->interval *= 2;
    }
    left -= entry->cost / static_cast<double>(entry->interval);
    shares -= entry->schedule.share;
  }
}

}  // namespace tycho
