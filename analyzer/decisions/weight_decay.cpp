// Weight decay that makes up a large part of each update. Of an update dw, lr * lambda * w is the
// decay's (over 1 - momentum with SGD); its share of the norm is lr * lambda / r, with the relative
// update r = |dw|/|w|. Weights in equilibrium with gradient noise have sqrt(lr * lambda / 2)
// (Kosson et al. 2023, arXiv:2305.17212), a few per cent at most; from kShare on the decay works
// against the gradient. Where nothing was learned, it has to be that large over the first twentieth
// of the run too. Not for Adam with an L2 penalty, which rescales it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kShare = 0.25;
constexpr double kUsual = 0.02;
constexpr double kFinished = 0.02;  // of the first loss: nothing is to be gained

}  // namespace

std::optional<Decision> weight_decay(const Signs& signs) {
  const v1::ParameterGroup group = signs.group();
  const bool sgd = signs.report.run.optimizer() == "SGD";
  if (!(group.weight_decay() > 0) || (!sgd && !group.decoupled_weight_decay())) return std::nullopt;
  const double rate = median_between(signs.learning_rate, signs.report, 0.3, 1);
  const double each = rate * group.weight_decay() / (sgd ? 1 - group.momentum() : 1);
  const double share = each / signs.relative_update(0.3, 1);
  if (!(share >= kShare)) return std::nullopt;
  // Where gradients died, decay is all that is left: it is the cause if it was large from the
  // start.
  if (signs.nothing_learned() && !(each >= kShare * signs.relative_update(0, 0.05)))
    return std::nullopt;
  const double first = signs.first_loss();
  if (std::isfinite(first) && signs.mean_loss(0.9, 1) < kFinished * first) return std::nullopt;
  double shrunk = 0;
  int weights = 0;
  for (const ParameterSigns& one : signs.parameters) {
    if (!one.is_weight || one.weight.size() < 2) continue;
    shrunk += std::log(one.weight.back().value / one.weight.front().value);
    ++weights;
  }
  const double growth = weights > 0 ? std::exp(shrunk / weights) : kUnknown;
  Decision decision;
  decision.code = "weight_decay";
  decision.factor = std::min(round_factor(kUsual / std::min(share, 1.0)), 0.1);
  decision.title = fmt::format("Lower the weight decay from {:g} to {:g}", group.weight_decay(),
                               decision.factor * group.weight_decay());
  decision.because = fmt::format(
      "Weight decay is about {:.0f} % of each update: it works against the gradient. Weights are "
      "{} "
      "times as large at the end as at the beginning (geometric mean of their norms).",
      100 * std::min(share, 1.0), short_number(growth));
  decision.expect =
      "The weights can grow to the size that the loss requires, and the loss ends "
      "lower.";
  decision.refuted_by =
      "If the training loss does not end lower, the decay was not what limited it. A held-out loss "
      "that gets worse says that the decay was needed.";
  decision.gain = signs.nothing_learned() ? 0.98 : 0.65;
  decision.laws = {"rotational_equilibrium"};
  decision.statistic = "weight_norm_sq";
  decision.scope = "run";
  decision.setting = "weight_decay";
  return decision;
}

}  // namespace tycho::analyzer
