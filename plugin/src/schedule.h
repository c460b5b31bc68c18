#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace tycho {

/// When one probe is observed.
struct ProbeSchedule {
  std::optional<int64_t> every;  ///< at multiples of this, whatever the budget
  std::optional<int64_t>
      log_spaced;    ///< at about this many steps per factor of ten, whatever the budget
  double share = 1;  ///< of the budget, relative to the other probes
  /// What the first observation may cost, in bare training steps. Above 0 a budget does not let it
  /// happen at the first step, but when that much is there to be spent.
  double expected_steps = 0;
  /// Also observed whenever another probe is: what others are read against (loss, batch size).
  bool accompanies = false;
};

/// Median of the last observations.
class RecentMedian {
 public:
  void add(double value);
  bool empty() const { return count_ == 0; }
  double median() const;  ///< 0 when empty

 private:
  static constexpr size_t kWindow = 31;
  std::array<double, kWindow> values_{};
  size_t count_ = 0;
};

/// Decides which probes are observed at a step (design 5).
///
/// Without a budget a probe without an interval of its own is due at every step. With a budget such
/// a probe is due at multiples of a power of two, chosen so that its cost per step is its share of
/// the budget; what cheap probes leave is given to the others. And it is due only while everything
/// spent so far, divided by the time of bare training, is inside the budget. The first step is
/// always observed: what it costs is worked off before the next observation. Probes with an
/// interval of their own take at most half of the budget from the others.
class Scheduler {
 public:
  explicit Scheduler(std::optional<double> budget) : budget_(budget) {}

  size_t add(ProbeSchedule schedule);
  void disable(size_t probe) { probes_[probe].disabled = true; }
  /// Probes due at `step`, ascending. `first`: the first step of the session.
  void due(int64_t step, bool first, std::vector<size_t>* probes) const;

  /// What was installed during a step: nothing, hooks on gradients only, or on operators too.
  enum class Hooks { kNone, kGradients, kOperators };
  /// A step went by: `outside` seconds of it were spent outside the session. What a step with hooks
  /// took longer than bare steps is Tycho's too; `combination` names the set of probes that asked
  /// for them, so that like is compared with like.
  void step_took(double outside, bool observed, Hooks hooks = Hooks::kNone,
                 uint64_t combination = 0);
  /// Seconds spent inside the session, on the training thread.
  void spent(double seconds) { spent_ += seconds; }
  /// What one observation of `probe` cost, its part of shared work included.
  void observed(size_t probe, double seconds);

  /// Tycho's seconds so far, with the slowing down of observed steps.
  double spent_seconds() const { return spent_; }
  double bare_seconds() const { return elapsed_ > excess_ ? elapsed_ - excess_ : 0; }
  /// Slowing down of the last hooked step; 0 while it cannot be told.
  double last_excess() const { return last_excess_; }
  /// The same of steps with hooks on gradients only.
  double gradient_excess() const { return std::max(gradient_hooks_.median(), 0.0); }

 private:
  struct Entry {
    ProbeSchedule schedule;
    bool free() const { return !schedule.every && !schedule.log_spaced; }
    double cost = 0;
    bool measured = false;
    bool disabled = false;
    int64_t interval = 1;
  };
  /// Measured, or expected.
  double cost_of(const Entry& entry) const;
  /// Seconds of a step without Tycho; there was one.
  double bare_step() const;
  void plan();

  std::optional<double> budget_;
  std::vector<Entry> probes_;
  RecentMedian bare_;
  std::map<uint64_t, RecentMedian> hooked_;  // by combination
  RecentMedian gradient_hooks_;
  double elapsed_ = 0;  // outside the session
  double excess_ = 0;   // of that, because of Tycho
  double last_excess_ = 0;
  double spent_ = 0;
  double fixed_spent_ = 0;  // of that, by probes with an interval of their own
  uint64_t steps_ = 0;
};

}  // namespace tycho
