#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "src/compare/run_digest.h"
#include "src/compare/settings.h"

namespace tycho::analyzer {

/// What a sweep varies.
enum class Axis { kWidth, kDepth, kBatchSize, kLearningRate };
const char* to_string(Axis axis);  ///< width, depth, batch size, learning rate

/// Runs with one value of an axis; those of a level are replicates, told apart by their seeds.
struct Level {
  double value = 0;
  std::vector<size_t> runs;
};

/// Runs that differ in one thing, and in what follows from it.
struct Ladder {
  Axis axis = Axis::kWidth;
  std::string label;                 ///< what these share and others do not; empty: nothing
  std::vector<Level> levels;         ///< by ascending value, two at least
  std::vector<std::string> follows;  ///< settings that change along the axis with it
  size_t runs() const;
  /// "width 128, 256 and 512, 4 runs each (tag parametrization mup)".
  std::string describe() const;
};

/// A setting in which runs differ, or that some have and others have not.
struct Difference {
  std::string name;
  SettingKind kind = SettingKind::kTraining;
  std::vector<std::string> value;  ///< by run; empty: it has none
};

/// A path that was given and is not among the runs.
struct LeftOut {
  std::string path;
  std::string why;
};

/// Runs side by side: what they share, in what they differ, which sweeps they form.
class RunSet {
 public:
  /// Takes the digests of what could be read, at least one, and what could not. A run given twice
  /// counts once. Settings in `ignored` (names as in Difference) are not asked when sweeps are
  /// recognised.
  RunSet(std::vector<RunDigest> runs, std::vector<LeftOut> left_out,
         std::set<std::string> ignored = {});

  /// Sorted by what tells them apart.
  const std::vector<RunDigest>& runs() const { return runs_; }
  const std::vector<LeftOut>& left_out() const { return left_out_; }
  /// Settings whose values are not all the same, what changes training first.
  const std::vector<Difference>& differences() const { return differences_; }
  /// What keeps parts of these runs from being compared, a sentence each.
  const std::vector<std::string>& notes() const { return notes_; }

  /// The run's value on an axis; NaN: not known.
  double value(Axis axis, size_t run) const;
  /// Short, unique: "width 128, seed 3".
  const std::string& label(size_t run) const { return labels_[run]; }
  /// Equal numbers: runs that differ by seeds only.
  size_t group(size_t run) const { return groups_[run]; }
  size_t groups() const { return group_labels_.size(); }
  /// What runs of a group share: "width 128".
  const std::string& group_label(size_t group) const { return group_labels_[group]; }

  /// Sweeps along an axis. Settings in `free` may differ without splitting a sweep or a level.
  std::vector<Ladder> ladders(Axis axis, const std::set<std::string>& free = {}) const;

  /// Layers that all of these runs have, in the order of the first.
  std::vector<std::string> common_layers(const std::vector<size_t>& runs) const;

 private:
  std::string setting(const std::string& name, size_t run) const;
  /// Names of what can tell runs apart, in the order in which it is asked.
  std::vector<std::string> keys() const;
  /// By what tells them apart, so that neighbours are alike.
  void sort_runs();
  void find_dimensions();
  void find_differences();
  void find_notes();
  void find_labels();

  std::vector<RunDigest> runs_;
  std::vector<LeftOut> left_out_;
  std::set<std::string> ignored_;
  std::vector<std::map<std::string, Setting>> settings_;  // by run
  std::vector<double> width_;
  std::vector<double> depth_;
  std::vector<Difference> differences_;
  std::vector<std::string> notes_;
  std::vector<std::string> labels_;
  std::vector<size_t> groups_;
  std::vector<std::string> group_labels_;
};

/// "a", "a and b", "a, b and c".
std::string enumerate(const std::vector<std::string>& parts);

}  // namespace tycho::analyzer
