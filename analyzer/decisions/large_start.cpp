// First weights that are too large: the last layer put out values of kLarge or more (root mean
// square) at the first observed step, and the loss began at kHigher times what it had after a
// twentieth of the run, or more: the first steps only undo the initialisation. Outputs of a
// regression may be large by right; then the loss does not fall that fast. Where the loss exploded
// to kExploded times its beginning first, the end of the run is what it is compared with.
#include <fmt/format.h>

#include <cmath>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kLarge = 4;
constexpr double kHigher = 2.5;
constexpr double kExploded = 10;

}  // namespace

std::optional<Decision> large_start(const Signs& signs) {
  Samples last;
  int layers = 0;
  std::string output;
  std::string scope;
  for (int i = 0; i < signs.report.model.layer_size(); ++i) {
    Samples rms = signs.layer("activation_rms", static_cast<size_t>(i));
    if (rms.empty()) continue;
    ++layers;
    output = signs.report.layer_label(static_cast<uint32_t>(i));
    scope = "layer:" + signs.report.model.layer(i).path();
    last = std::move(rms);
  }
  if (last.empty() || !is_at_start(signs.report, last.front().step)) return std::nullopt;
  const double start = last.front().value;
  const bool exploded = largest(signs.loss) >= kExploded * signs.first_loss();
  const double then = exploded ? signs.mean_loss(0.9, 1) : signs.mean_loss(0.05, 0.15);
  if (!(start >= kLarge) || !(signs.first_loss() >= kHigher * then)) return std::nullopt;
  Decision decision;
  decision.code = "large_start";
  // A gain that is too large multiplies itself from layer to layer.
  decision.factor = exploded ? round_factor(std::pow(start, -1.0 / layers)) : 0.2;
  decision.title = "Start with smaller weights";
  if (exploded)
    decision.title += fmt::format(": about {:g} times these in each layer", decision.factor);
  const std::string course =
      exploded
          ? fmt::format(
                "It rose to {} and ended at {}: the run did little more than undo the "
                "initialisation.",
                short_number(largest(signs.loss)), short_number(then))
          : fmt::format("It was {} soon after, so the first steps had to undo the initialisation.",
                        short_number(then));
  decision.because = fmt::format(
      "At step {} the last layer, {}, had outputs of {} (root mean square) and the loss was {}. "
      "{}",
      last.front().step, output, short_number(start), short_number(signs.first_loss()), course);
  decision.expect =
      "Layers that keep the size of their inputs (Kaiming initialisation), and a last layer "
      "that starts near 0: the run begins at the loss of a random guess, with units that can "
      "still learn.";
  decision.refuted_by = "Targets that are as large as the first outputs.";
  decision.gain = 0.92;
  decision.laws = {"signal_propagation"};
  decision.statistic = "activation_rms";
  decision.scope = scope;
  decision.step = last.front().step;
  decision.setting = "gain";
  return decision;
}

}  // namespace tycho::analyzer
