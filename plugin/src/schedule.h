#pragma once

#include <array>
#include <cstdint>
#include <optional>
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
  size_t count() const { return count_; }
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
/// interval of their own take at most half of the budget from the others. Where every step would
/// have hooks, a budget leaves one in 64 bare, to compare with.
class Scheduler {
 public:
  /// `early`: the share that may be taken of the first `early_seconds` of bare training instead,
  /// where it is the larger one: early steps are worth more, and short runs cost little.
  explicit Scheduler(std::optional<double> budget, double early = 0, double early_seconds = 0)
      : budget_(budget), early_(early), early_seconds_(early_seconds) {}

  size_t add(ProbeSchedule schedule);
  void disable(size_t probe) { probes_[probe].disabled = true; }
  /// Probes due at `step`, ascending. `first`: the first step of the session.
  void due(int64_t step, bool first, std::vector<size_t>* probes) const;
  /// Adds those that accompany others.
  void accompany(std::vector<size_t>* probes) const;

  /// What was installed during a step: nothing, hooks on gradients only, or on operators too.
  enum class Hooks { kNone, kGradients, kOperators };
  /// A step went by, not the first, which warms up what bare training warms up too: `outside`
  /// seconds of it were spent outside the session, `in_hooks` of them in the session's hooks, which
  /// are Tycho's. So is what a step with hooks takes longer than bare ones beyond that (LibTorch's
  /// work for hooks, caches that grew cold), once there are bare steps to compare with.
  void step_took(double outside, Hooks hooks = Hooks::kNone, double in_hooks = 0);
  /// Seconds spent inside the session, on the training thread.
  void spent(double seconds) { spent_ += seconds; }
  /// What one observation of `probe` cost, its part of shared work included.
  void observed(size_t probe, double seconds);

  /// Seconds inside the session so far.
  double spent_seconds() const { return spent_; }
  double bare_seconds() const { return elapsed_ > excess_ ? elapsed_ - excess_ : 0; }
  /// Seconds that steps with hooks took longer than bare ones, beyond those spent in hooks.
  double slowdown_seconds() const { return slowdown_; }
  /// Whether steps with hooks could be compared with bare ones; else the above is too small.
  bool slowdown_known() const;
  /// Of the last step; 0 while it cannot be told.
  double last_slowdown() const { return last_slowdown_; }

 private:
  static constexpr size_t kBareSteps = 3;  // before steps with hooks are compared with them

  struct Entry {
    ProbeSchedule schedule;
    bool free() const { return !schedule.every && !schedule.log_spaced; }
    double cost = 0;
    bool measured = false;
    bool disabled = false;
    int64_t interval = 1;
  };
  /// Steps with the same kind of hooks.
  struct Hooked {
    RecentMedian outside;  // less the time in hooks
    uint64_t waiting = 0;  // steps that have not been compared with bare ones
  };
  bool comparable() const { return bare_.count() >= kBareSteps; }
  /// Whether what is due by the budget only is left out, to have a bare step to compare with.
  bool wants_bare() const;
  /// Measured, or expected.
  double cost_of(const Entry& entry) const;
  /// Seconds of a step without Tycho; there was one.
  double bare_step() const;
  void plan();
  /// Seconds that may have been spent so far, and the share of the time that goes by now.
  double allowance() const;
  double share_now() const;

  std::optional<double> budget_;
  double early_;
  double early_seconds_;
  std::vector<Entry> probes_;
  RecentMedian bare_;
  std::array<Hooked, 3> hooked_;  // by Hooks
  uint64_t hooked_in_a_row_ = 0;
  double elapsed_ = 0;   // outside the session
  double excess_ = 0;    // of that, because of Tycho
  double slowdown_ = 0;  // of that, outside its hooks
  double last_slowdown_ = 0;
  double spent_ = 0;
  double fixed_spent_ = 0;  // of that, by probes with an interval of their own
  uint64_t steps_ = 0;
};

}  // namespace tycho
