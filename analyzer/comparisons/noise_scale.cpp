#include "comparisons/noise_scale.h"

namespace tycho::analyzer {

double noise_scale(const RunDigest& run) {
  const auto* trace = run.series("grad_noise_trace");
  const auto* signal = run.series("grad_signal_sq");
  if (trace == nullptr || signal == nullptr) return kUnknown;
  const auto mean = [](const std::vector<RunBin>& bins) {
    double sum = 0;
    double count = 0;
    for (const RunBin& bin : bins) {
      sum += bin.mean * static_cast<double>(bin.count);
      count += static_cast<double>(bin.count);
    }
    return sum / count;
  };
  const double ratio = mean(*trace) / mean(*signal);
  return ratio > 0 ? ratio : kUnknown;
}

}  // namespace tycho::analyzer
