// A learning rate that was all but gone while the loss was still falling: over the last kTooLong of
// the steps or more it stayed below kGone of its peak, and in a tenth of the steps before it was
// lowered the loss fell by kFalling of its level or more, of which little came after.
#include <fmt/format.h>

#include <cmath>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kTooLong = 0.3;
constexpr double kGone = 0.02;
constexpr double kLowered = 0.8;  // of the peak: the decay has begun
constexpr double kFalling = 0.05;

}  // namespace

std::optional<Decision> early_decay(const Signs& signs) {
  const double peak = signs.peak_rate();
  if (!(peak > 0) || signs.learning_rate.back().value > kGone * peak) return std::nullopt;
  int64_t gone = -1;
  int64_t begun = -1;
  for (const Sample& each : signs.learning_rate) {
    if (each.value > kLowered * peak) begun = each.step;
    if (each.value > kGone * peak) {
      gone = -1;
    } else if (gone < 0) {
      gone = each.step;
    }
  }
  const auto place = [&](int64_t step) { return share_before(signs.report, step); };
  if (gone < 0 || begun < 0 || 1 - place(gone) < kTooLong) return std::nullopt;
  const double before = signs.mean_loss(place(begun) - 0.1, place(begun) - 0.05);
  const double at = signs.mean_loss(place(begun) - 0.05, place(begun));
  if (!(before - at >= kFalling * std::fabs(at))) return std::nullopt;
  Decision decision;
  decision.code = "early_decay";
  decision.title = "Lower the learning rate later";
  decision.because = fmt::format(
      "From step {} on, for {:.0f} % of the run, the learning rate was at most {:g} % of its peak, "
      "and the loss stayed near {}; before it was lowered, at about step {}, the loss was falling, "
      "from {} to {} within a twentieth of the run.",
      gone, 100 * (1 - place(gone)), 100 * kGone, short_number(signs.mean_loss(0.9, 1)), begun,
      short_number(before), short_number(at));
  decision.expect =
      "The fall continues until the decay begins; decaying over the last fifth of the steps is "
      "usual.";
  decision.refuted_by = "A loss that is flat before the decay begins.";
  decision.gain = 0.75;
  decision.statistic = "learning_rate";
  decision.scope = "run";
  decision.step = begun;
  decision.setting = "decay_from";
  return decision;
}

}  // namespace tycho::analyzer
