#include "schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tycho {
namespace {

constexpr double kFixedPart = 0.5;  // of the budget, that fixed intervals may take from the others

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
  const double beyond =
      budget_ ? std::max(fixed_spent_ - kFixedPart * *budget_ * bare_seconds(), 0.0) : 0;
  double reserved = 0;
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
    if (!take && free && step % entry.interval == 0) {
      const double cost = cost_of(entry);
      take = spent_ - beyond + excess_ + reserved + cost <= *budget_ * bare_seconds();
      if (take) reserved += cost;
    }
    if (take) probes->push_back(i);
  }
  if (probes->empty()) return;
  for (size_t i = 0; i < probes_.size(); ++i) {
    if (!probes_[i].schedule.accompanies || probes_[i].disabled) continue;
    const auto position = std::lower_bound(probes->begin(), probes->end(), i);
    if (position == probes->end() || *position != i) probes->insert(position, i);
  }
}

void Scheduler::step_took(double outside, bool observed, Hooks hooks, uint64_t combination) {
  elapsed_ += outside;
  ++steps_;
  last_excess_ = 0;
  if (!observed) {
    bare_.add(outside);
  } else if (hooks != Hooks::kNone) {
    // One slow step says little: the median over recent steps with the same hooks is charged.
    if (bare_.empty()) return;
    RecentMedian& alike = hooked_[combination];
    alike.add(outside - bare_.median());
    if (hooks == Hooks::kGradients) gradient_hooks_.add(outside - bare_.median());
    last_excess_ = std::max(alike.median(), 0.0);
    excess_ += last_excess_;
  }
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
  return bare_.empty() ? bare_seconds() / static_cast<double>(steps_) : bare_.median();
}

void Scheduler::plan() {
  if (!budget_ || steps_ == 0) return;
  const double step = bare_step();
  double allowed = *budget_ * step;
  std::vector<Entry*> open;
  for (Entry& entry : probes_) {
    if (entry.disabled) continue;
    if (!entry.measured) entry.cost = cost_of(entry);
    if (entry.schedule.every) allowed -= entry.cost / static_cast<double>(*entry.schedule.every);
    if (entry.free()) open.push_back(&entry);
  }
  allowed = std::max(allowed, (1 - kFixedPart) * *budget_ * step);
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
