// Parameters that get a gradient at every step and are never updated: the optimizer does not hold
// them, or holds them with a learning rate of 0. Freezing them on purpose is done with
// requires_grad(false), which saves their gradients. Seen at kFewest observed steps or more, from
// the first to the last.
#include <fmt/format.h>

#include <algorithm>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kFewest = 8;

}  // namespace

std::optional<Decision> not_in_optimizer(const Signs& signs) {
  std::vector<std::string> layers;
  bool missing = false;
  std::string scope;
  for (const ParameterSigns& each : signs.parameters) {
    const bool still = each.update.size() >= kFewest && largest(each.update) == 0;
    if (!still || each.gradient.size() < kFewest ||
        !(median_between(each.gradient, signs.report, 0, 1) > 0))
      continue;
    missing = missing || !each.in_optimizer;
    if (scope.empty()) scope = "param:" + each.name;
    if (layers.empty() || layers.back() != each.layer) layers.push_back(each.layer);
  }
  if (layers.empty()) return std::nullopt;
  const bool one = layers.size() == 1;
  Decision decision;
  decision.code = "not_in_optimizer";
  decision.title = missing ? fmt::format("Give {} to the optimizer, or freeze {}", named(layers),
                                         one ? "it" : "them")
                           : fmt::format("Give {} a learning rate", named(layers));
  decision.because = fmt::format(
      "{} {} a gradient at every observed step and never changed: {}.", named(layers),
      one ? "had" : "each had",
      missing ? "the optimizer does not hold its parameters" : "its learning rate is 0");
  decision.expect = fmt::format(
      "{} will train. If {} meant to stay as {}, requires_grad(false) saves the gradient.",
      one ? "It" : "They", one ? "it is" : "they are", one ? "it is" : "they are");
  decision.refuted_by = "Nothing to refute if this is intended.";
  decision.gain = 0.8;
  decision.statistic = "update_norm_sq";
  decision.scope = scope;
  decision.setting = "frozen_layers";
  return decision;
}

}  // namespace tycho::analyzer
