#include "matrix/power_law.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace tycho {
namespace {

constexpr size_t kFewestValues = 25;  // in a tail
constexpr size_t kCandidates = 100;
constexpr int kSamples = 200;
constexpr int kFarther = kSamples / 10;
constexpr double kSignificant = 1.64;  // one-sided 5 % of a normal distribution

std::vector<double> logarithms(const std::vector<double>& sorted) {
  std::vector<double> result;
  result.reserve(sorted.size());
  for (const double value : sorted) {
    if (value > 0 && std::isfinite(value)) result.push_back(std::log(value));
  }
  return result;
}

/// On ascending logarithms.
std::optional<PowerLaw> fit(const std::vector<double>& logs) {
  const size_t size = logs.size();
  if (size < kFewestValues) return std::nullopt;
  std::vector<double> above(size + 1);  // sums from the end
  for (size_t i = size; i-- > 0;) above[i] = above[i + 1] + logs[i];
  const size_t choices = size - kFewestValues + 1;
  const size_t stride = std::max<size_t>(1, (choices + kCandidates - 1) / kCandidates);
  std::optional<PowerLaw> best;
  for (size_t begin = 0; begin < choices; begin += stride) {
    if (begin > 0 && logs[begin] == logs[begin - 1]) continue;
    const auto n = static_cast<double>(size - begin);
    const double sum = above[begin] - n * logs[begin];
    if (!(sum > 0)) continue;
    const double rate = n / sum;  // exponent - 1
    double distance = 0;
    for (size_t i = begin; i < size; ++i) {
      const double expected = -std::expm1(-rate * (logs[i] - logs[begin]));
      const double below = static_cast<double>(i - begin) / n;
      distance = std::max({distance, expected - below, below + 1 / n - expected});
      if (best && distance >= best->distance) break;
    }
    if (best && distance >= best->distance) continue;
    best = PowerLaw{1 + rate, rate / std::sqrt(n), std::exp(logs[begin]),
                    static_cast<int64_t>(size - begin), distance};
  }
  return best;
}

/// Vuong's statistic of the fit against an exponential tail that begins where it does.
double against_exponential(const std::vector<double>& logs, const PowerLaw& law) {
  const size_t begin = logs.size() - static_cast<size_t>(law.tail);
  const auto n = static_cast<double>(law.tail);
  double mean = 0;  // of x / minimum - 1
  for (size_t i = begin; i < logs.size(); ++i) mean += std::expm1(logs[i] - logs[begin]) / n;
  double sum = 0;
  double squares = 0;
  for (size_t i = begin; i < logs.size(); ++i) {
    const double log = logs[i] - logs[begin];
    const double difference =
        std::log(law.exponent - 1) - law.exponent * log + std::log(mean) + std::expm1(log) / mean;
    sum += difference;
    squares += difference * difference;
  }
  const double variance = squares / n - sum / n * sum / n;
  return variance > 0 ? sum / std::sqrt(n * variance) : 0;
}

}  // namespace

std::optional<PowerLaw> fit_power_law(const std::vector<double>& sorted) {
  return fit(logarithms(sorted));
}

bool is_power_law(const std::vector<double>& sorted, const PowerLaw& law, uint64_t seed) {
  const std::vector<double> logs = logarithms(sorted);
  if (!(against_exponential(logs, law) > kSignificant)) return false;
  const size_t below = logs.size() - static_cast<size_t>(law.tail);
  std::mt19937_64 random(seed);
  // Not std::uniform_real_distribution: it differs between libraries.
  const auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; };
  int farther = 0;
  for (int sample = 0; sample < kSamples && farther < kFarther; ++sample) {
    if (farther + kSamples - sample < kFarther) return false;
    std::vector<double> drawn(logs.size());
    for (double& log : drawn) {
      const auto pick = static_cast<size_t>(uniform() * static_cast<double>(logs.size()));
      log = pick < below ? logs[pick] : logs[below] - std::log(uniform()) / (law.exponent - 1);
    }
    std::sort(drawn.begin(), drawn.end());
    const auto fitted = fit(drawn);
    farther += fitted && fitted->distance >= law.distance;
  }
  return farther >= kFarther;
}

}  // namespace tycho
