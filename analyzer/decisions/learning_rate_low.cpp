// A learning rate with which the run does not get far: the updates are small beside the weights, r
// = |dw|/|w| at most kSmall a step (healthy runs have about kUsual, while the rate is at its peak),
// and the loss was still falling: kStillFalling of all that it fell came in the last third of the
// steps; kSlowly is enough where all updates together, had they all pointed one way, would not have
// moved the weights by kShortPath of their norm. Where the rate was lowered by then, it is the
// schedule's: see early_decay.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kSmall = 6e-4;
constexpr double kUsual = 3e-3;
constexpr double kStillFalling = 0.2;
constexpr double kSlowly = 0.03;
constexpr double kShortPath = 0.3;
constexpr double kConstant = 0.3;  // of the peak
constexpr double kMostAtOnce = 20;

}  // namespace

std::optional<Decision> learning_rate_low(const Signs& signs) {
  const double updates = signs.relative_update(0.3, 1);
  if (!(updates <= kSmall) || !(median_between(signs.learning_rate, signs.report, 0.6, 0.9) >=
                                kConstant * signs.peak_rate()))
    return std::nullopt;
  const double first = signs.first_loss();
  const double before = signs.mean_loss(0.57, 0.67);
  const double end = signs.mean_loss(0.9, 1);
  const double path = updates * run_length(signs.report);
  const double enough = path <= kShortPath ? kSlowly : kStillFalling;
  if (!(first - end > 0) || !(before - end >= enough * (first - end))) return std::nullopt;
  Decision decision;
  decision.code = "learning_rate_low";
  decision.factor = std::clamp(round_factor(kUsual / updates), 2.0, kMostAtOnce);
  decision.title = fmt::format("Raise the learning rate from {:g} to {:g}", signs.peak_rate(),
                               decision.factor * signs.peak_rate());
  decision.because = fmt::format(
      "A step changes the weights by {:.2g} % of their norm, where about {:g} % is usual, and the "
      "loss was still falling at the end: {:.0f} % of its fall from {} to {} came in the last "
      "third "
      "of the steps.",
      100 * updates, 100 * kUsual, 100 * (before - end) / (first - end), short_number(first),
      short_number(end));
  decision.expect = fmt::format(
      "The same final loss in about a {} of the steps, as long as the loss falls smoothly.",
      decision.factor >= 10 ? "tenth" : "third");
  decision.refuted_by =
      "A loss that oscillates or jumps at the higher rate: then the curvature limits it, not the "
      "rate.";
  decision.gain = signs.nothing_learned() ? 0.9 : 0.7;
  decision.laws = {"critical_sharpness_bound"};
  decision.statistic = "update_norm_sq";
  decision.scope = "run";
  decision.setting = "learning_rate";
  return decision;
}

}  // namespace tycho::analyzer
