#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace tycho {

/// When one probe is observed.
struct ProbeSchedule {
  std::optional<int64_t> every;  ///< at multiples of this, whatever the budget
  std::optional<int64_t>
      log_spaced;  ///< at about this many steps per factor of ten, whatever the budget
  /// What the first observation may cost, in bare training steps. Above 0 a budget does not let it
  /// happen at the first step, but when that much is there to be spent.
  double expected_steps = 0;
  static constexpr double kForAVerdict = 12;
  /// Observations per factor of ten of steps that come before all further ones. A verdict takes
  /// kForAVerdict, and little can be said before there are that many; of a description the first
  /// few tell most.
  double per_decade = kForAVerdict;
  /// Observed kGuaranteedPerDecade times per factor of ten of steps whatever was spent: what every
  /// report begins with.
  bool guaranteed = false;
  /// Steps in a row that make one observation: once begun it is due until it is whole. What a step
  /// may cost, above, is that of each of them.
  int64_t steps_in_a_row = 1;
  /// Its first observation is what later ones are compared with: it comes before everything else.
  bool is_reference = false;
  /// Laws that read it: an observation is worth more.
  double laws = 1;
  /// Also observed whenever another probe is, or one that evaluates the probe loss: what others
  /// are read against.
  enum class Accompanies { kNone, kProbeLoss, kAll } accompanies = Accompanies::kNone;
  /// Also observed whenever this probe is, unless that has an interval of its own: laws read both
  /// at the same steps.
  std::optional<size_t> accompanies_probe{};
  bool evaluates_probe_loss = false;
};

/// Median of the last observations, the lower one of an even number.
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
/// Without a budget a probe without an interval of its own is due at every step. With a budget it
/// is due only while everything spent so far, divided by the time of bare training, is inside the
/// budget, and what there is to spend goes
/// - first to probes that have fewer observations than ProbeSchedule::per_decade, about what their
///   laws need, spread over the run. The one that costs least per observation needed goes first, so
///   that as many laws as possible have theirs, and first observations before repeated ones; one
///   that cannot be paid for yet is saved for;
/// - then to all alike: a probe is due at multiples of a power of two, chosen so that its cost per
///   step is an equal share; what cheap ones leave is given to the others. While a probe is saved
///   for, this takes at most kBeyondPart of the budget.
///
/// Cheap probes, those that are expected to cost no more than a part of a step, have a floor
/// whatever the others have spent: up to kNeededFloorPart of the budget for what their laws need,
/// and up to kFloorPart of it, each evenly thinned to its equal share, for more; their first
/// observations, which warm up and prove, do not count. A guaranteed one is observed at
/// logarithmically spaced steps even beyond.
///
/// The first step is always observed: what it costs is worked off before expensive observations.
/// Probes with an interval of their own take at most half of the budget from the others. Where
/// every step would have hooks, a budget leaves one in 64 bare, to compare with.
class Scheduler {
 public:
  /// `early`: the share that may be taken of the first `early_seconds` of bare training instead,
  /// where it is the larger one: early steps are worth more, and short runs cost little.
  explicit Scheduler(std::optional<double> budget, double early = 0, double early_seconds = 0)
      : budget_(budget), early_(early), early_seconds_(early_seconds) {}

  size_t add(ProbeSchedule schedule);
  void disable(size_t probe) { probes_[probe].disabled = true; }
  using Can = std::function<bool(size_t probe)>;
  /// Probes due at `step`, ascending. `first`: the first step of the session. `can`: whether a
  /// probe could be observed now; empty: all can.
  void due(int64_t step, bool first, std::vector<size_t>* probes, const Can& can = {}) const;
  /// These are observed at `step`, which begins now: what they are expected to cost is taken from
  /// the budget until it is known.
  void take(int64_t step, const std::vector<size_t>& probes);
  /// Adds those that accompany others.
  void accompany(std::vector<size_t>* probes, const Can& can = {}) const;

  /// What was installed during a step: nothing, hooks on gradients only, or on operators too.
  enum class Hooks { kNone, kGradients, kOperators };
  /// A step went by, not the first, which warms up what bare training warms up too: `outside`
  /// seconds of it were spent outside the session, `in_hooks` of them in the session's hooks, which
  /// are Tycho's. So is what a step with hooks takes longer than bare ones beyond that (LibTorch's
  /// work for hooks, caches that grew cold), once there are bare steps to compare with.
  void step_took(double outside, Hooks hooks = Hooks::kNone, double in_hooks = 0);
  /// Seconds spent inside the session, on the training thread.
  void spent(double seconds) { spent_ += seconds; }
  /// Whether an observation of `probe` led to any value. One that is expensive and has none (its
  /// assumptions are not met) is tried again after ever longer stretches, twice as long each time.
  void recorded(size_t probe, bool anything);
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
    double cost = 0;       // as measured, of a step
    int64_t measured = 0;  // times
    bool disabled = false;
    bool cheap() const { return free() && schedule.expected_steps == 0; }
    int64_t interval = 1;
    int64_t floor_interval = 1;  // of a cheap one, within the floor
    uint64_t observations = 0;
    int64_t last = 0;     // step of the last of them
    int64_t to_come = 0;  // steps of it that are still to be observed
    /// Whether `step` belongs to an observation that began before.
    bool goes_on(int64_t step) const { return to_come > 0 && step == last + 1; }
    int barren = 0;            // observations without a value, since the last with one
    bool last_beyond = false;  // whether it was one that nobody was behind with
  };
  /// Steps with the same kind of hooks.
  struct Hooked {
    RecentMedian outside;  // less the time in hooks
    uint64_t waiting = 0;  // steps that have not been compared with bare ones
  };
  bool comparable() const { return bare_.count() >= kBareSteps; }
  /// Whether what is due by the budget only is left out, to have a bare step to compare with.
  bool wants_bare() const;
  /// Of all steps of an observation.
  double cost_of(const Entry& entry) const {
    return cost_of_step(entry) * static_cast<double>(entry.schedule.steps_in_a_row);
  }
  /// Measured, or expected. What the first observation cost says little: it also proves what it
  /// rests on, and warms up kernels and caches.
  double cost_of_step(const Entry& entry) const;
  /// Whether the last observations had no value, and it is too early to try again.
  bool rests(const Entry& entry, int64_t step) const;
  /// Observations that it is to have by `step`.
  double wanted(const Entry& entry, int64_t step) const;
  /// Of those that are behind the lowest goes first: what an observation costs for each that is
  /// needed, less where it tells more.
  double rank(const Entry& entry, int64_t step) const;
  /// Whether it has fewer observations than it is to have by `step`, and the last is not just past.
  bool behind(const Entry& entry, int64_t step) const;
  enum class Due : char { kNot, kYes, kCannot };
  /// Adds those that the floor lets be observed, debt or not.
  void due_by_floor(int64_t step, std::vector<Due>* due) const;
  /// Adds those due by the budget to `due`, by probe.
  void due_by_budget(int64_t step, std::vector<Due>* due) const;
  /// Seconds of a step without Tycho; there was one.
  double bare_step() const;
  void plan();
  /// Divides `allowed` seconds per step among `open`, whose costs are given: cheap ones first, so
  /// that what they leave of their shares goes to the rest. Sets powers of two as intervals.
  static void share(std::vector<std::pair<double, int64_t*>> open, double allowed);
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
  double fixed_spent_ = 0;   // of that, by probes with an interval of their own
  double floor_spent_ = 0;   // of that, by cheap probes after their first observation
  double beyond_spent_ = 0;  // of that, for observations that nobody was behind with
  double reserved_ = 0;      // for the step that runs now
  int64_t first_step_ = -1;
  uint64_t steps_ = 0;
};

}  // namespace tycho
