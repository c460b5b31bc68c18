// Parameters that the optimizer holds and that no backward pass reaches: an output that is not
// used, a detach(), a forward pass without gradients. Seen where other parameters had a gradient at
// kFewest observed steps or more, these at none, and they never changed. What an event says could
// not be observed (sparse gradients, for example) is left out.
#include <fmt/format.h>

#include <algorithm>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kFewest = 8;
constexpr double kLargePart = 0.05;  // of all entries

bool is_said(const Report& report, const ParameterSigns& parameter) {
  return std::any_of(report.events.begin(), report.events.end(), [&](const v1::Event& event) {
    return event.kind() == v1::Event::NOT_OBSERVED && event.scope() == v1::SCOPE_PARAMETER &&
           event.entity() == parameter.id && event.code().rfind("gradient", 0) == 0;
  });
}

}  // namespace

std::optional<Decision> no_gradient(const Signs& signs) {
  std::vector<std::string> layers;
  uint64_t unreached = 0;
  uint64_t all = 0;
  size_t most = 0;
  for (const ParameterSigns& each : signs.parameters) most = std::max(most, each.gradient.size());
  if (most < kFewest) return std::nullopt;
  std::string scope;
  for (const ParameterSigns& each : signs.parameters) {
    all += each.elements;
    const bool moved = each.update.empty() || largest(each.update) > 0;
    if (!each.in_optimizer || !each.gradient.empty() || moved || is_said(signs.report, each))
      continue;
    unreached += each.elements;
    if (scope.empty()) scope = "param:" + each.name;
    if (layers.empty() || layers.back() != each.layer) layers.push_back(each.layer);
  }
  if (layers.empty()) return std::nullopt;
  const double part = static_cast<double>(unreached) / static_cast<double>(all);
  Decision decision;
  decision.code = "no_gradient";
  decision.title = fmt::format("Let gradients reach {}", named(layers));
  decision.because = fmt::format(
      "No observed backward pass gave a gradient to {} ({:.1f} % of all weights), though the "
      "optimizer holds {}: what {} computes does not reach the loss, or is cut off by detach() "
      "or a NoGradGuard.",
      named(layers), 100 * part, layers.size() == 1 ? "it" : "them",
      layers.size() == 1 ? "it" : "they");
  decision.expect = fmt::format("{} will train.", layers.size() == 1 ? "It" : "They");
  decision.refuted_by =
      "Nothing to refute if this is intended: then leave them out of the "
      "optimizer.";
  decision.gain = signs.nothing_learned() || part > kLargePart ? 0.96 : 0.6;
  decision.statistic = "update_norm_sq";
  decision.scope = scope;
  decision.setting = "attached_layers";
  return decision;
}

}  // namespace tycho::analyzer
