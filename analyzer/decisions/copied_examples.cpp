// Copies within a batch: examples whose gradients are the same. They cost time and memory and add
// nothing to the step: of n copies n - 1 are wasted, and no estimate of the noise from within the
// batch sees it. From the largest share of distinct examples of the run.
#include <fmt/format.h>

#include "decisions/rules.h"

namespace tycho::analyzer {

std::optional<Decision> copied_examples(const Signs& signs) {
  constexpr double kDistinct = 0.9;
  constexpr size_t kFewest = 3;
  const Samples distinct = signs.run("distinct_examples");
  const double share = largest(distinct);
  const double size = signs.batch_size();
  if (distinct.size() < kFewest || !(share < kDistinct) || !(size > 1)) return std::nullopt;
  Decision decision;
  decision.code = "copied_examples";
  decision.title = "Draw each example once per batch";
  decision.because = fmt::format(
      "Of the {:g} examples of a batch, about {:.0f} have a distinct gradient; the others are "
      "copies of them.",
      size, share * size);
  decision.expect = fmt::format(
      "Batches of {:g} different examples: less noise in each step, for the same time.", size);
  decision.refuted_by =
      "If the data naturally contain that many equal examples, a smaller batch of different "
      "ones makes the same progress in less time.";
  decision.gain = 0.6;
  decision.laws = {"gradient_noise_scale"};
  decision.statistic = "distinct_examples";
  decision.scope = "run";
  decision.setting = "copies";
  decision.factor = share;
  return decision;
}

}  // namespace tycho::analyzer
