// Gradients that add up from step to step because zero_grad() is missing. With SGD an update is at
// most learning rate / (1 - momentum) times the largest gradient so far; where backward delivered
// less than that by kTooLarge, in most weights and over the second half of the run, and Tycho saw
// that the optimizer's gradients are not those of backward, the rest came from earlier steps.
#include <fmt/format.h>

#include <algorithm>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kTooLarge = 3;

}  // namespace

std::optional<Decision> gradients_kept(const Signs& signs) {
  const bool changed =
      std::any_of(signs.report.events.begin(), signs.report.events.end(),
                  [](const v1::Event& event) { return event.code() == "gradients_changed"; });
  const v1::ParameterGroup group = signs.group();
  if (!changed || signs.report.run.optimizer() != "SGD" || !(group.momentum() < 1) ||
      group.weight_decay() > 0)
    return std::nullopt;
  const double most = signs.peak_rate() / (1 - group.momentum());
  int too_large = 0;
  int weights = 0;
  for (const ParameterSigns& each : signs.parameters) {
    if (!each.is_weight || !each.in_optimizer || each.gradient.empty()) continue;
    ++weights;
    const double update = median_between(each.update, signs.report, 0.5, 1);
    too_large += update > kTooLarge * most * largest(each.gradient);
  }
  if (weights == 0 || 2 * too_large <= weights) return std::nullopt;
  Decision decision;
  decision.code = "gradients_kept";
  decision.title = "Clear the gradients before each backward pass";
  decision.because = fmt::format(
      "In {} of {} weights the updates are more than {:g} times what the largest gradients "
      "delivered by backward could produce at this learning rate: gradients of earlier steps "
      "are still in .grad.",
      too_large, weights, kTooLarge);
  decision.expect = "optimizer.zero_grad() in each step: the loss will follow the gradient again.";
  decision.refuted_by = "Code of your own that multiplies gradients before the optimizer's step.";
  decision.severity = Severity::kAlarm;
  decision.gain = 0.99;
  decision.statistic = "update_norm_sq";
  decision.scope = "run";
  decision.setting = "zero_grad";
  return decision;
}

}  // namespace tycho::analyzer
