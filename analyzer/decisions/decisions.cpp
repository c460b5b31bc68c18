#include <algorithm>

#include "decisions/rules.h"

namespace tycho::analyzer {
namespace {

/// Laws that had no say in this run are no ground for a decision.
void keep_laws_that_spoke(const Report& report, std::vector<std::string>* laws) {
  const auto silent = [&](const std::string& law) {
    return std::none_of(report.findings.begin(), report.findings.end(), [&](const Finding& each) {
      return each.law == law &&
             (each.verdict == Verdict::kHolds || each.verdict == Verdict::kViolated);
    });
  };
  laws->erase(std::remove_if(laws->begin(), laws->end(), silent), laws->end());
}

}  // namespace

std::vector<Decision> decide(const Report& report) {
  constexpr size_t kMost = 5;
  const Signs signs(report);
  std::vector<Decision> result;
  if (!signs.enough()) return result;
  for (const auto& rule :
       {no_gradient, not_in_optimizer, silent_layer, gradients_kept, large_inputs, large_start,
        single_examples, weight_decay, learning_rate_high, learning_rate_low, adam_epsilon,
        early_decay, overfitting, batch_size, copied_examples, coupled_examples}) {
    if (auto decision = rule(signs)) result.push_back(std::move(*decision));
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const Decision& a, const Decision& b) { return a.gain > b.gain; });
  std::vector<Decision> kept;
  for (Decision& each : result) {
    const bool again =
        !each.setting.empty() && std::any_of(kept.begin(), kept.end(), [&](const Decision& other) {
          return other.setting == each.setting;
        });
    if (again || kept.size() == kMost) continue;
    keep_laws_that_spoke(report, &each.laws);
    kept.push_back(std::move(each));
  }
  return kept;
}

}  // namespace tycho::analyzer
