#pragma once

#include <cstdint>
#include <optional>

#include "src/loss/loss_course.h"

namespace tycho::analyzer {

/// The end of a run over which the training loss did not fall any more, as far as its noise tells.
struct ProgressEnd {
  int64_t step = -1;      ///< from here on: the earliest step for which that can be said
  int64_t earliest = -1;  ///< that it was over here already cannot be excluded
  int64_t last = -1;      ///< the last observed step
  double steps = 0;       ///< of the whole run, first to last observed
  double after = 0;       ///< steps from `step` to the last one
  double start = 0;       ///< loss at the start of the run
  double first = 0;       ///< mean over the first eighth of what came from `step` on
  double level = 0;       ///< mean over its last half
  double fall = 0;        ///< first - level, with its 95 % interval
  double low = 0;
  double high = 0;
  /// Upper 95 % limit of the fall from any of the first four eighths.
  double at_most = 0;
  bool at_zero = false;  ///< it lay below 2 % of where it began, and no loss was negative
  double share() const { return after / steps; }
};

/// Looks for the longest such end, of a third of the steps or more; nothing where there is none,
/// where the noise does not tell, or where the loss fell by less than a fifth before.
///
/// Its fall is small where the upper limit is at most 2 % of the level and of all that the loss
/// fell; of a loss at zero 2 % of all that it fell. It is that of each of the first four eighths
/// against the last half. Its error is by the stretches of the course, with the autocorrelation of
/// the noise (long_run_variance.h); where these do not tell their correlation time and the loss is
/// not at zero, or a tenth of the run lay lower, nothing is said. Limits are at 98 % for the
/// search, of which several begins are tried.
///
/// Where the learning rate over the first quarter of that end was below half of its peak before,
/// the rate may be what keeps the loss: nothing is said, unless it is at zero. A rate that was not
/// recorded does not count.
///
/// 64 losses at least (more than LossCourse has stretches by then) are needed. Up to 20 ms.
/// Thread-safe.
std::optional<ProgressEnd> progress_end(const LossCourse& course);

}  // namespace tycho::analyzer
