// Batches of one or two examples. The gradient of so few is mostly noise, and of one example the
// noise cannot be measured. Where such a run learned nothing the batch is the first thing to
// change; where it learned, a larger batch saves time on most hardware.
#include <fmt/format.h>

#include "decisions/rules.h"

namespace tycho::analyzer {

std::optional<Decision> single_examples(const Signs& signs) {
  constexpr double kFew = 2;
  constexpr double kUsual = 32;
  const double size = signs.batch_size();
  if (!(size >= 1) || size > kFew) return std::nullopt;
  const bool learned = !signs.nothing_learned();
  Decision decision;
  decision.code = "single_examples";
  decision.title = fmt::format("Use batches of {:g} or more", kUsual);
  decision.because = fmt::format(
      "A batch has {:g} example{}: each step follows the noise of it{}. {}", size,
      size == 1 ? "" : "s", size == 1 ? ", which cannot be measured within one example" : "",
      learned
          ? "The loss fell nevertheless."
          : fmt::format("The loss began at {} and ended at {}.", short_number(signs.first_loss()),
                        short_number(signs.mean_loss(0.9, 1))));
  decision.expect =
      learned ? "The same progress in fewer steps, and better use of the hardware."
              : "Gradients that agree from step to step, so that this learning rate becomes "
                "stable.";
  decision.refuted_by =
      "If the loss does not fall with the larger batch either, the learning rate is next.";
  decision.severity = learned ? Severity::kNote : Severity::kWarning;
  decision.gain = learned ? 0.4 : 0.97;
  decision.statistic = "loss";
  decision.scope = "run";
  decision.setting = "batch_size";
  decision.factor = kUsual / size;
  return decision;
}

}  // namespace tycho::analyzer
