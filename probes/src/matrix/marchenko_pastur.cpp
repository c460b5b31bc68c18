#include "matrix/marchenko_pastur.h"

#include <algorithm>
#include <cmath>

namespace tycho {
namespace {

constexpr size_t kNodes = 2049;
constexpr size_t kFewest = 20;
constexpr double kPi = 3.14159265358979323846;
constexpr double kTracyWidom99 = 2.0234;  // 99 % quantile of the first law

double median(const std::vector<double>& sorted, size_t begin) {
  const size_t count = sorted.size() - begin;
  const size_t middle = begin + count / 2;
  return count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

}  // namespace

// With x = 1 + q + 2 sqrt(q) cos(t), t from 0 at the upper edge to pi at the lower one, the density
// is 2 sin(t)^2 / (pi x), which has no singularity, for q = 1 either.
MarchenkoPastur::MarchenkoPastur(double ratio) : ratio_(ratio), cumulative_(kNodes) {
  const double step = kPi / static_cast<double>(kNodes - 1);
  const auto density = [&](double angle) {
    const double x = 1 + ratio_ + 2 * std::sqrt(ratio_) * std::cos(angle);
    const double sine = std::sin(angle);
    return x > 1e-12 ? 2 * sine * sine / (kPi * x) : 2 / kPi;
  };
  double sum = 0;
  for (size_t i = 0; i < kNodes; ++i) {
    cumulative_[i] = sum;
    const double angle = static_cast<double>(i) * step;
    sum += step / 6 * (density(angle) + 4 * density(angle + step / 2) + density(angle + step));
  }
  const double total = cumulative_.back();
  for (double& value : cumulative_) value /= total;
}

double MarchenkoPastur::lower_edge() const { return std::pow(1 - std::sqrt(ratio_), 2); }
double MarchenkoPastur::upper_edge() const { return std::pow(1 + std::sqrt(ratio_), 2); }

double MarchenkoPastur::at(size_t i) const {
  const double angle = kPi * static_cast<double>(i) / static_cast<double>(kNodes - 1);
  return 1 + ratio_ + 2 * std::sqrt(ratio_) * std::cos(angle);
}

double MarchenkoPastur::cumulative(double x) const {
  if (x <= lower_edge()) return 0;
  if (x >= upper_edge()) return 1;
  const double cosine = std::clamp((x - 1 - ratio_) / (2 * std::sqrt(ratio_)), -1.0, 1.0);
  const double position = std::acos(cosine) / kPi * static_cast<double>(kNodes - 1);
  const size_t i = std::min(static_cast<size_t>(position), kNodes - 2);
  const double part = position - static_cast<double>(i);
  return 1 - (cumulative_[i] + part * (cumulative_[i + 1] - cumulative_[i]));
}

double MarchenkoPastur::quantile(double p) const {
  const double above = 1 - std::clamp(p, 0.0, 1.0);
  const auto next = std::upper_bound(cumulative_.begin(), cumulative_.end(), above);
  if (next == cumulative_.end()) return lower_edge();
  const auto i = static_cast<size_t>(next - cumulative_.begin());
  if (i == 0) return upper_edge();
  const double part = (above - cumulative_[i - 1]) / (cumulative_[i] - cumulative_[i - 1]);
  return at(i - 1) + part * (at(i) - at(i - 1));
}

std::optional<SpectrumBulk> fit_bulk(const std::vector<double>& singular_values, int64_t larger) {
  const size_t size = singular_values.size();
  if (size < kFewest || larger < static_cast<int64_t>(size)) return std::nullopt;
  std::vector<double> squares;
  for (const double value : singular_values) squares.push_back(value * value);
  SpectrumBulk bulk;
  size_t spikes = 0;
  for (;;) {
    // What is left is noise on the directions that are left.
    const auto n = static_cast<double>(larger) - static_cast<double>(spikes);
    const auto m = static_cast<double>(size - spikes);
    const MarchenkoPastur law(m / n);
    const double variance = median(squares, spikes) / (n * law.quantile(0.5));
    if (!(variance > 0) || !std::isfinite(variance)) return std::nullopt;
    const double roots = std::sqrt(n - 1) + std::sqrt(m);
    const double width = roots * std::cbrt(1 / std::sqrt(n - 1) + 1 / std::sqrt(m));
    const double limit = variance * (roots * roots + kTracyWidom99 * width);
    size_t beyond = spikes;
    while (beyond < size && squares[beyond] > limit) ++beyond;
    if (2 * beyond > size) return std::nullopt;
    if (beyond == spikes) {
      bulk.deviation = std::sqrt(variance);
      bulk.edge = bulk.deviation * (std::sqrt(n) + std::sqrt(m));
      bulk.spikes = static_cast<int64_t>(spikes);
      for (size_t i = spikes; i < size; ++i) {
        const double expected = law.cumulative(squares[i] / (n * variance));
        const double above =
            static_cast<double>(size - i) / m;  // of the empirical one, right of it
        bulk.distance = std::max(
            {bulk.distance, std::abs(above - expected), std::abs(above - 1 / m - expected)});
      }
      return bulk;
    }
    spikes = beyond;
  }
}

}  // namespace tycho
