// Adam's epsilon above the size of the gradients: epsilon_floor_share, the share of entries whose
// sqrt(v) is not far above epsilon, is kMost or more for most of the weights. Their steps are then
// proportional to the gradient, as with SGD, and small.
#include <fmt/format.h>

#include <cmath>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kMost = 0.5;
constexpr double kUsual = 1e-8;
constexpr double kNotByItself = 1e-7;  // epsilons below are not the cause: gradients are tiny

}  // namespace

std::optional<Decision> adam_epsilon(const Signs& signs) {
  const double epsilon = signs.group().epsilon();
  if (!(epsilon > kNotByItself)) return std::nullopt;
  int below = 0;
  int weights = 0;
  double least = 1;
  for (const ParameterSigns& each : signs.parameters) {
    if (!each.is_weight) continue;
    const auto buckets =
        signs.report.series.series({"epsilon_floor_share", v1::SCOPE_PARAMETER}, each.id);
    double last = kUnknown;
    for (const Bucket& bucket : buckets)
      if (bucket.count > 0) last = bucket.mean();
    if (!std::isfinite(last)) continue;
    ++weights;
    below += last >= kMost;
    if (last >= kMost) least = std::fmin(least, last);
  }
  if (weights == 0 || 2 * below <= weights) return std::nullopt;
  Decision decision;
  decision.code = "adam_epsilon";
  decision.title = fmt::format("Lower Adam's epsilon from {:g} to {:g}", epsilon, kUsual);
  decision.because = fmt::format(
      "In {} of {} weights, {:.0f} % or more of the entries have gradients of the size of epsilon "
      "or below: Adam does not normalise them, and their steps are small.",
      below, weights, 100 * least);
  decision.expect =
      "Steps of the size of the learning rate in every layer, and a faster fall "
      "of the loss.";
  decision.refuted_by =
      "An unstable loss: then lower the learning rate, which was chosen with this epsilon.";
  decision.gain = 0.75;
  decision.laws = {"adam_update_rms"};
  decision.statistic = "epsilon_floor_share";
  decision.scope = "run";
  decision.setting = "epsilon";
  decision.factor = kUsual / epsilon;
  return decision;
}

}  // namespace tycho::analyzer
