// A learning rate that is too high for this run to learn: the loss diverged; or nothing was
// learned, or kLost of it was lost again for the last third of the run, and the first updates
// changed the weights by kLargeUpdate of their norm a step; or nothing was learned and the gradient
// of most weights died: below kDied of its largest value over the last third of the run.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kLargeUpdate = 0.02;
constexpr double kDied = 1e-4;
constexpr double kLost = 0.2;  // of how far the loss had fallen
constexpr double kFactor = 0.1;

/// The lowest stretch of the loss, where most of the last third of the run lies above it again by
/// kLost of the fall to it.
std::optional<Sample> lost_since(const Signs& signs) {
  // A NaN is lower than nothing.
  const auto best = std::min_element(
      signs.loss.begin(), signs.loss.end(), [](const Sample& one, const Sample& other) {
        return one.value < other.value || (std::isnan(other.value) && !std::isnan(one.value));
      });
  if (best == signs.loss.end()) return std::nullopt;
  const double fall = signs.first_loss() - best->value;
  const double end = median_between(signs.loss, signs.report, 2.0 / 3, 1);
  const bool lost =
      share_before(signs.report, best->step) < 0.5 && fall > 0 && end - best->value >= kLost * fall;
  return lost ? std::optional<Sample>(*best) : std::nullopt;
}

/// The step from which on the gradient of a weight stays below kDied of its largest; -1: it does
/// not.
int64_t died_at(const ParameterSigns& weight) {
  const double most = largest(weight.gradient);
  if (weight.gradient.size() < 2 || !(most > 0)) return -1;
  int64_t step = -1;
  for (const Sample& each : weight.gradient) {
    if (each.value > kDied * most) {
      step = -1;
    } else if (step < 0) {
      step = each.step;
    }
  }
  return step;
}

/// When half of the weights had died; -1: they did not.
int64_t network_died_at(const Signs& signs) {
  std::vector<int64_t> steps;
  size_t weights = 0;
  for (const ParameterSigns& each : signs.parameters) {
    if (!each.is_weight || !each.in_optimizer || each.gradient.empty()) continue;
    ++weights;
    if (const int64_t step = died_at(each); step >= 0) steps.push_back(step);
  }
  if (weights == 0 || 2 * steps.size() < weights) return -1;
  std::sort(steps.begin(), steps.end());
  return steps[(weights - 1) / 2];
}

}  // namespace

std::optional<Decision> learning_rate_high(const Signs& signs) {
  const std::vector<LossAlarm> alarms = loss_alarms(signs.report.loss);
  const bool diverged = std::any_of(alarms.begin(), alarms.end(), [](const LossAlarm& alarm) {
    return alarm.severity == Severity::kAlarm;
  });
  const double early = signs.relative_update(0, 0.05);
  const int64_t died = network_died_at(signs);
  const bool nothing = signs.nothing_learned();
  const bool dead = died >= 0 && share_before(signs.report, died) < 2.0 / 3 && nothing;
  const std::optional<Sample> best = lost_since(signs);
  if (!diverged && !dead && !((nothing || best) && early >= kLargeUpdate)) return std::nullopt;
  Decision decision;
  decision.code = "learning_rate_high";
  decision.title = fmt::format("Lower the learning rate from {:g} to {:g}", signs.peak_rate(),
                               kFactor * signs.peak_rate());
  std::string because = "The loss diverged";
  if (!diverged)
    because = fmt::format("The loss began at {} and ended at {}", short_number(signs.first_loss()),
                          short_number(signs.mean_loss(0.9, 1)));
  if (!diverged && !nothing && best)
    because += fmt::format(", and was lowest, at {}, about step {}", short_number(best->value),
                           best->step);
  if (std::isfinite(early))
    because += fmt::format("; early updates changed the weights by {:.2g} % of their norm a step",
                           100 * early);
  if (died >= 0)
    because += fmt::format(
        "; from about step {} on hardly any gradient came back from the loss, as if all units "
        "were saturated or silent",
        died);
  decision.because = because + ".";
  decision.expect = "A loss that falls from the first steps on.";
  decision.refuted_by =
      "If the loss also stays at its initial value with a tenth of the rate, look at the data "
      "and at the size of the initial weights.";
  decision.severity = diverged ? Severity::kAlarm : Severity::kWarning;
  decision.gain = 0.95;
  decision.laws = {"edge_of_stability", "warm_up"};
  decision.statistic = "loss";
  decision.scope = "run";
  decision.step = dead ? died : -1;
  decision.setting = "learning_rate";
  decision.factor = kFactor;
  return decision;
}

}  // namespace tycho::analyzer
