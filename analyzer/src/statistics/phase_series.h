#pragma once

#include <array>
#include <cstdint>

#include "src/parameter_settings.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {

/// A stretch of steps under constant optimizer settings, and the recent averages within it.
struct Phase {
  explicit Phase(size_t series = 1) : series(series) {}
  ParameterSettings settings;
  int64_t begin = -1;  ///< first step under these settings
  int64_t end = -1;    ///< last step seen under them
  RecentHalf series;
  int64_t steps() const { return begin < 0 ? 0 : end - begin + 1; }
};

/// Follows a series through changing optimizer settings: laws of stationary states hold within a
/// phase of constant settings only. Keeps the current phase and, of those before, the one with the
/// most observations (the longest one where none had any), so that a final decay of the learning
/// rate does not erase what the constant part showed.
class PhaseSeries {
 public:
  explicit PhaseSeries(size_t series = 1) : current_(series), longest_(series) {}

  /// Tells the settings at a step; starts a new phase where they differ.
  void set_settings(const ParameterSettings& settings, int64_t step) {
    if (current_.begin >= 0 && settings == current_.settings) return;
    start_phase(settings, step);
  }
  void start_phase(const ParameterSettings& settings, int64_t step) {
    if (better(current_, longest_)) longest_ = current_;
    current_.series.clear();  // not a new one: a schedule changes settings at every step
    current_.settings = settings;
    current_.begin = step;
    current_.end = step;
  }

  /// Notes that a step passed under the current settings.
  void pass(int64_t step) { current_.end = step; }
  void add(const std::array<double, BlockAverages::kMaxSeries>& values, int64_t step) {
    current_.series.add(values, step);
  }

  const Phase& current() const { return current_; }
  /// The phase to judge: with the most observations.
  const Phase& best() const { return better(longest_, current_) ? longest_ : current_; }

 private:
  static bool better(const Phase& a, const Phase& b) {
    if (a.begin < 0 || b.begin < 0) return a.begin >= 0 && b.begin < 0;
    const uint64_t observed_a = a.series.blocks().observations();
    const uint64_t observed_b = b.series.blocks().observations();
    return observed_a != observed_b ? observed_a > observed_b : a.steps() > b.steps();
  }
  Phase current_;
  Phase longest_;
};

}  // namespace tycho::analyzer
