#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace tycho::analyzer {

/// Bins of steps that are the same for every run: one step each up to `single`, then of equal
/// ratio, `per_octave` to a factor of two. Any step has a bin, so that at most
/// single + 63 per_octave bins exist however long a run is.
struct StepGrid {
  int64_t single;
  double per_octave;

  /// A negative step counts as 0.
  size_t bin(int64_t step) const {
    if (step < single) return static_cast<size_t>(std::max<int64_t>(step, 0));
    const double octaves = std::log2(static_cast<double>(step) / static_cast<double>(single));
    return static_cast<size_t>(single) + static_cast<size_t>(octaves * per_octave);
  }
};

/// Of series of the run: at most 3.2 % of the step wide.
inline constexpr StepGrid kFineGrid{32, 22};
/// Of series of layers: at most 9 % of the step wide.
inline constexpr StepGrid kCoarseGrid{16, 8};

}  // namespace tycho::analyzer
