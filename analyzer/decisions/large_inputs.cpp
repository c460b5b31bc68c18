// Inputs that are large beside the weights that take them up. A first layer with weights W of norm
// |W|_F and n outputs, still as it was initialised, makes of inputs of root mean square x outputs
// of about x |W|_F / sqrt(n); so x is told from activation_rms at the first observed step. Images
// of 0 to 255 that were not scaled have about 100. Of the first layer in the model's order, where
// it has a matrix or filters as weights; not where it looks up embeddings.
#include <fmt/format.h>

#include <cmath>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kLarge = 10;
constexpr double kSilent = 0.9;  // of the units: then biases make the outputs, not the inputs

}  // namespace

std::optional<Decision> large_inputs(const Signs& signs) {
  const ParameterSigns* first = nullptr;
  for (const ParameterSigns& each : signs.parameters) {
    if (first == nullptr && each.is_weight) first = &each;
  }
  if (first == nullptr || first->weight.empty()) return std::nullopt;
  const v1::Parameter& described = signs.report.model.parameter(static_cast<int>(first->id));
  if (described.layer() >= static_cast<uint32_t>(signs.report.model.layer_size()))
    return std::nullopt;
  const v1::Layer& layer = signs.report.model.layer(static_cast<int>(described.layer()));
  const bool dense = layer.type().find("Linear") != std::string::npos ||
                     layer.type().find("Conv") != std::string::npos;
  const Samples rms = signs.layer("activation_rms", described.layer());
  if (!dense || rms.empty() || rms.front().step > first->weight.front().step) return std::nullopt;
  const Samples dead = signs.layer("dead_fraction", described.layer());
  if (!dead.empty() && dead.front().value >= kSilent) return std::nullopt;
  const double inputs = rms.front().value * std::sqrt(static_cast<double>(described.shape(0))) /
                        first->weight.front().value;
  if (!(inputs > kLarge)) return std::nullopt;
  Decision decision;
  decision.code = "large_inputs";
  decision.title = "Scale the inputs to about 1";
  decision.because = fmt::format(
      "The first layer, {}, had outputs of {} (root mean square) at step {}: given its weights, "
      "its inputs are about {}. Gradients and curvature grow with their square.",
      first->layer, short_number(rms.front().value), rms.front().step, short_number(inputs));
  decision.expect =
      "With mean 0 and standard deviation 1 for each input, a loss that falls smoothly at usual "
      "learning rates.";
  decision.refuted_by = "Inputs that are already scaled like that.";
  decision.gain = signs.nothing_learned() ? 0.985 : 0.55;
  decision.laws = {"signal_propagation"};
  decision.statistic = "activation_rms";
  decision.scope = "layer:" + layer.path();
  decision.step = rms.front().step;
  decision.setting = "input_scale";
  decision.factor = 1 / inputs;
  return decision;
}

}  // namespace tycho::analyzer
