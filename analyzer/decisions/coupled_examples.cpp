// Batches that differ from each other more than their examples do: sorted or clustered data. Rests
// on the law of the gradient noise scale, which tells this from a gradient that moves.
#include <fmt/format.h>

#include "decisions/rules.h"

namespace tycho::analyzer {

std::optional<Decision> coupled_examples(const Signs& signs) {
  const Finding* law = signs.finding("gradient_noise_scale");
  if (law == nullptr || law->verdict != Verdict::kViolated || copied_examples(signs))
    return std::nullopt;
  Decision decision;
  decision.code = "coupled_examples";
  decision.title = "Shuffle the data, so that each batch is drawn from all of it";
  decision.because =
      "The examples of a batch have more in common with each other than with those "
      "of the next batch: " +
      law->gate + ".";
  decision.expect =
      "Steps that represent all of the data, with the noise expected at this "
      "batch size.";
  decision.refuted_by =
      "If batches are already drawn at random, look for groups in the data (frames of one film, "
      "sentences of one text, augmentations of one image) and sample by group.";
  decision.gain = signs.nothing_learned() ? 0.96 : 0.8;
  decision.laws = {"gradient_noise_scale"};
  decision.statistic = "between_batch_trace";
  decision.scope = "run";
  decision.setting = "order";
  return decision;
}

}  // namespace tycho::analyzer
