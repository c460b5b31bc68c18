// A layer whose units were silent (not above zero for any example of the batch, dead_fraction) at
// every observed step from the first on: kSilent of them or more, and whose weights never had a
// gradient other than 0, at kFewest observed steps or more. Nothing passes it, neither signal nor
// gradient. Layers that fell silent in training are the learning rate's: see
// learning_rate_high.cpp.
#include <fmt/format.h>

#include <algorithm>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kSilent = 0.95;
constexpr size_t kFewest = 8;

bool has_no_gradient(const Signs& signs, const std::string& layer) {
  bool any = false;
  for (const ParameterSigns& each : signs.parameters) {
    if (each.layer != layer) continue;
    if (each.gradient.size() < kFewest || largest(each.gradient) > 0) return false;
    any = true;
  }
  return any;
}

}  // namespace

std::optional<Decision> silent_layer(const Signs& signs) {
  std::vector<std::string> layers;
  std::string scope;
  for (int i = 0; i < signs.report.model.layer_size(); ++i) {
    const Samples dead = signs.layer("dead_fraction", static_cast<size_t>(i));
    const bool silent =
        !dead.empty() && std::all_of(dead.begin(), dead.end(),
                                     [](const Sample& each) { return each.value >= kSilent; });
    const std::string layer = signs.report.layer_label(static_cast<uint32_t>(i));
    if (!silent || !has_no_gradient(signs, layer)) continue;
    if (layers.empty()) scope = "layer:" + signs.report.model.layer(i).path();
    layers.push_back(layer);
  }
  if (layers.empty()) return std::nullopt;
  Decision decision;
  decision.code = "silent_layer";
  decision.title = fmt::format("Reinitialise {}", named(layers));
  decision.because = fmt::format(
      "At every observed step, from the first on, {:.0f} % or more of the units of {} were not "
      "above zero for any example: no gradient passes, and the layers before it learn nothing "
      "through it.",
      100 * kSilent, named(layers));
  decision.expect =
      "With biases near zero, or an activation that lets negative values through, the layers "
      "before "
      "it will train.";
  decision.refuted_by = "Units that are active at the first steps and fall silent later.";
  decision.gain = signs.nothing_learned() ? 0.97 : 0.7;
  decision.statistic = "dead_fraction";
  decision.scope = scope;
  decision.setting = "silent_layers";
  return decision;
}

}  // namespace tycho::analyzer
