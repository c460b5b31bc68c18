// A held-out loss that has risen since it was lowest, while the training loss fell: held_out().
// What is at stake is the share that was lost of all that it fell.
#include <fmt/format.h>

#include <algorithm>

#include "decisions/rules.h"
#include "src/loss/held_out_alarms.h"

namespace tycho::analyzer {
namespace {

constexpr double kLeastGain = 0.3;  // the steps since
constexpr double kMostGain = 0.85;

}  // namespace

std::optional<Decision> overfitting(const Signs& signs) {
  const std::optional<HeldOut> seen = held_out(signs.report.loss);
  if (!seen || seen->course != HeldOut::Course::kRisen ||
      seen->training != HeldOut::Training::kFell)
    return std::nullopt;
  const double fallen = seen->start - seen->best_level;
  Decision decision;
  decision.code = "overfitting";
  decision.title =
      fmt::format("Keep the weights of step {}, and stop earlier or regularise", seen->best.step);
  decision.because = fmt::format(
      "The held-out loss was lowest around step {} ({}), after {:.0f} % of the run, and has risen "
      "since by {}, while the training loss fell from {} to {}.",
      seen->best.step, short_number(seen->best_level),
      100 * share_before(signs.report, seen->best.step), with_interval(seen->rise),
      short_number(seen->training_best), short_number(seen->training_late));
  decision.expect = fmt::format(
      "About {} on held-out data instead of {}, after {:.0f} % of the steps; with regularisation "
      "possibly less. A cross-entropy also rises with confidence in wrong answers alone: if the "
      "error "
      "counts, look at it too.",
      short_number(seen->best_level), short_number(seen->late_level),
      100 * share_before(signs.report, seen->best.step));
  decision.refuted_by = fmt::format(
      "Weights of step {} whose loss on other held-out data is no lower than that of the last "
      "ones, or a held-out loss that falls below {} when training goes on.",
      seen->best.step, short_number(seen->best_level));
  decision.gain =
      fallen > 0 ? std::clamp(seen->rise.value / fallen, kLeastGain, kMostGain) : kMostGain;
  decision.statistic = "validation_loss";
  decision.scope = "run";
  decision.step = seen->best.step;
  decision.setting = "steps";
  decision.factor = share_before(signs.report, seen->best.step);
  return decision;
}

}  // namespace tycho::analyzer
