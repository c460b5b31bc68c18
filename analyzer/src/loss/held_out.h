#pragma once

#include <cstdint>
#include <optional>

#include "src/loss/loss_course.h"

namespace tycho::analyzer {

/// A difference with its 95 % interval; NaN where it was not looked for.
struct Difference {
  double value = kUnknown;
  double low = kUnknown;
  double high = kUnknown;
};

/// How the held-out loss went, as far as its own scatter tells.
struct HeldOut {
  enum class Course {
    kNotTold,  ///< too few values, or within their scatter
    kRisen,    ///< since it was lowest
    kFalling,  ///< still, at the end
  };
  enum class Training { kNotTold, kFell, kRose };

  Course course = Course::kNotTold;
  uint64_t values = 0;  ///< finite ones
  LossPoint lowest;     ///< of single values; biased downwards
  LossPoint last;       ///< finite
  double start = 0;     ///< mean of the first values
  /// Where the mean of consecutive values was lowest: first and last step, the step of the lowest
  /// of them (whose weights to keep), and their mean.
  int64_t best_begin = -1;
  int64_t best_end = -1;
  LossPoint best;
  double best_level = kUnknown;
  uint64_t best_values = 0;
  uint64_t after = 0;  ///< values after these
  /// Mean of the last third of the values after these, from step `late_begin` on.
  int64_t late_begin = -1;
  double late_level = kUnknown;
  Difference rise;  ///< late_level - best_level, the interval for all places at which was looked
  /// Where it has risen: the training loss from the best steps to the late ones.
  Training training = Training::kNotTold;
  Difference training_change;       ///< without an interval where levels_part() told it
  double training_best = kUnknown;  ///< mean training loss of the best steps
  double training_late = kUnknown;  ///< the same of the late ones
  Difference fall;                  ///< over the last third of all values: mean of its halves
  int64_t fall_from = -1;
  /// Held-out minus training loss from step `late_begin` on; NaN where either is not known there.
  double gap = kUnknown;
};

/// From the held-out losses of a run and its training loss. Nothing without a finite held-out loss;
/// only the lowest, the first and the last of fewer than 9.
///
/// The lowest level is the lowest mean over a tenth of the values (3 at least, 16 at most). With 6
/// values or more after these it is compared with the mean of the last third of them. It has risen
/// where the lower limit of the rise lies above zero and above 1 % of the level or of all that it
/// fell, whichever is less, and did so without the last twentieth and the last tenth of the values
/// too, one at least: a run is looked at again with each value that comes. The interval holds for
/// every place of the window at once (Bonferroni), because the lowest of many noisy means is low by
/// chance; its error is level_change()'s, from the lowest window on.
///
/// It still falls where it has not risen and over the last third of 24 values or more the lower
/// 98 % limit of the fall from its first half to its second lies above 2 % of the level and of all
/// that it fell, whichever is less.
///
/// Values count as equally spaced. O(n^2) for n values, of which at most 256 are kept: up to 1 ms.
/// Thread-safe.
std::optional<HeldOut> held_out(const LossCourse& course);

}  // namespace tycho::analyzer
