#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace tycho {

/// The only exception Tycho throws, only from construction: names the option, the value and the
/// legal range.
class OptionError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

enum class Preset {
  economy,  ///< loss, optimizer settings, norms and inner products of parameters, non-finite values
  standard,  ///< economy, gradient noise, activations, Adam's update, symmetry identities; with an
             ///< overhead budget or a fixed schedule also every other statistic that a law reads
  full,      ///< every built-in probe
};
enum class Reduction { mean, sum };
enum class Schedule {
  budget,  ///< probes without their own interval are observed as the overhead budget allows
           ///< (default)
  fixed,   ///< at 12 steps per factor of ten, whatever the cost: the same steps on every machine
};
enum class Durability {
  drop,      ///< a full queue drops messages and counts them: training never waits (default)
  complete,  ///< a full queue makes training wait: nothing is dropped
};

/// Options of a Session, in LibTorch's style of chained setters. Every field can also be set by the
/// environment variable TYCHO_<FIELD>, which wins over the program.
class SessionOptions {
 public:
  /// `directory`: the run directory; created if it does not exist. If it already holds a run, or
  /// another session writes to it, the run goes to a numbered neighbour (runs/digits-2), which is
  /// reported once: see resume() and exclusive().
  explicit SessionOptions(std::string directory);
  SessionOptions& directory(std::string value);

  SessionOptions& preset(Preset value);
  /// Largest share of the run's time that Tycho may take on the training thread, in (0, 1];
  /// nullopt: no limit. Default 0.02. Probes scheduled with every() or log_spaced() are kept
  /// whatever the budget, and take at most half of it from the others.
  SessionOptions& overhead_budget(std::optional<double> value);
  /// Larger share that applies to the first `seconds` of training: `share` in [0, 1], `seconds`
  /// finite and at least 0. Default 0.3 of 60 s. Has no effect without an overhead budget.
  SessionOptions& early_budget(double share, double seconds);
  /// What decides when probes are observed. Default: Schedule::budget.
  SessionOptions& schedule(Schedule value);
  /// Observes `name` (a probe, or a statistic: then its probe) at steps that are multiples of
  /// `interval` >= 1.
  SessionOptions& every(const std::string& name, int64_t interval);
  /// Observes `name` at about `per_decade` >= 1 logarithmically spaced steps per factor of ten.
  SessionOptions& log_spaced(const std::string& name, int64_t per_decade);
  SessionOptions& loss_reduction(Reduction value);
  /// Dimension of the examples in the model's input, >= 0. Default 0.
  SessionOptions& batch_dim(int64_t value);
  /// Layers whose path matches one of the glob patterns (`*`, `?`) are observed. Default: all.
  SessionOptions& include(std::vector<std::string> patterns);
  SessionOptions& exclude(std::vector<std::string> patterns);
  SessionOptions& seed(uint64_t value);
  SessionOptions& run_name(std::string value);
  SessionOptions& tags(std::vector<std::string> value);
  SessionOptions& durability(Durability value);
  /// Continues the run directory from `step` >= 0 after a checkpoint: a new segment.
  SessionOptions& resume(int64_t step);
  /// Refuses a directory that is taken (OptionError) instead of using a numbered neighbour.
  /// Default: false.
  SessionOptions& exclusive(bool value = true);

  /// Whether a missing probe or step loss is built from the operators of the trainer's own steps.
  /// Default: true.
  SessionOptions& tape(bool value);
  /// Memory limit for that, in MiB, at least 1: the batches of the steps kept. Default 256.
  SessionOptions& tape_memory(int64_t mebibytes);

  // Getters of the same names without argument.
  const std::string& directory() const { return directory_; }
  Preset preset() const { return preset_; }
  std::optional<double> overhead_budget() const { return overhead_budget_; }
  double early_share() const { return early_share_; }
  double early_seconds() const { return early_seconds_; }
  Schedule schedule() const { return schedule_; }
  const std::map<std::string, int64_t>& every() const { return every_; }
  const std::map<std::string, int64_t>& log_spaced() const { return log_spaced_; }
  Reduction loss_reduction() const { return loss_reduction_; }
  int64_t batch_dim() const { return batch_dim_; }
  const std::vector<std::string>& include() const { return include_; }
  const std::vector<std::string>& exclude() const { return exclude_; }
  uint64_t seed() const { return seed_; }
  const std::string& run_name() const { return run_name_; }
  const std::vector<std::string>& tags() const { return tags_; }
  Durability durability() const { return durability_; }
  std::optional<int64_t> resume() const { return resume_; }
  bool is_exclusive() const { return exclusive_; }
  bool tape() const { return tape_; }
  int64_t tape_memory() const { return tape_memory_; }

 private:
  std::string directory_;
  Preset preset_ = Preset::standard;
  std::optional<double> overhead_budget_ = 0.02;
  double early_share_ = 0.3;
  double early_seconds_ = 60;
  Schedule schedule_ = Schedule::budget;
  std::map<std::string, int64_t> every_;
  std::map<std::string, int64_t> log_spaced_;
  Reduction loss_reduction_ = Reduction::mean;
  int64_t batch_dim_ = 0;
  std::vector<std::string> include_;
  std::vector<std::string> exclude_;
  uint64_t seed_ = 0;
  std::string run_name_;
  std::vector<std::string> tags_;
  Durability durability_ = Durability::drop;
  std::optional<int64_t> resume_;
  bool exclusive_ = false;
  bool tape_ = true;
  int64_t tape_memory_ = 256;
};

}  // namespace tycho
