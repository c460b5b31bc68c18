#include "src/statistics/false_discoveries.h"

#include <algorithm>
#include <cmath>

namespace tycho::analyzer {
namespace {

constexpr double kFalseDiscoveryRate = 0.05;

}  // namespace

void control_false_discoveries(const std::vector<Finding*>& findings) {
  std::vector<double> p_values;
  for (const Finding* finding : findings) {
    if (std::isfinite(finding->p_value)) p_values.push_back(finding->p_value);
  }
  std::sort(p_values.begin(), p_values.end());
  double threshold = -1;
  for (size_t i = 0; i < p_values.size(); ++i) {
    const double line =
        kFalseDiscoveryRate * static_cast<double>(i + 1) / static_cast<double>(p_values.size());
    if (p_values[i] <= line) threshold = p_values[i];
  }
  for (Finding* finding : findings) {
    if (!std::isfinite(finding->p_value) || finding->verdict != Verdict::kViolated ||
        finding->p_value <= threshold) {
      continue;
    }
    finding->verdict = Verdict::kUnderpowered;
    finding->importance = importance(finding->verdict, false);
    finding->gate += "; deviates, but not by more than chance among so many layers";
    finding->advice.clear();
  }
}

}  // namespace tycho::analyzer
