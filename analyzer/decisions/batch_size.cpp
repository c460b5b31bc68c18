// The batch beside the gradient noise scale B_noise = tr(Sigma)/|G|^2 (McCandlish et al. 2018,
// arXiv:1812.06162): far below it, steps are mostly noise; far above it, examples are wasted. Rests
// on the law's own interval, and only where the law speaks.
#include <fmt/format.h>

#include <cmath>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

constexpr double kFar = 4;

}  // namespace

std::optional<Decision> batch_size(const Signs& signs) {
  const Finding* law = signs.finding("gradient_noise_scale");
  const double size = signs.batch_size();
  if (law == nullptr || law->verdict != Verdict::kHolds || !(size > 2)) return std::nullopt;
  const bool small = size * kFar < law->ci_low;
  const bool large = size > kFar * law->ci_high;
  if (!small && !large) return std::nullopt;
  Decision decision;
  decision.code = small ? "batch_small" : "batch_large";
  decision.factor = round_factor(law->measured / size);
  decision.title = fmt::format("{} the batch from {:g} to about {:.0f}", small ? "Raise" : "Lower",
                               size, decision.factor * size);
  decision.because =
      fmt::format("The gradient noise scale is {} [{}, {}] examples.", short_number(law->measured),
                  short_number(law->ci_low), short_number(law->ci_high));
  decision.expect = small ? "Fewer steps to the same loss, for about as many examples."
                          : "The same loss with fewer examples, in about as many steps.";
  decision.refuted_by = small ? "As many steps to the same loss as before."
                              : "More steps to the same loss than the smaller batch saves.";
  decision.severity = Severity::kNote;
  decision.gain = small ? 0.5 : 0.4;
  decision.laws = {"gradient_noise_scale"};
  decision.statistic = "noise_scale";
  decision.scope = "run";
  decision.setting = "batch_size";
  return decision;
}

}  // namespace tycho::analyzer
