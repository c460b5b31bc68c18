#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace tycho {

/// A density proportional to x^-exponent for x >= minimum, fitted to the upper end of a sample.
struct PowerLaw {
  double exponent = 0;
  double standard_error = 0;  ///< (exponent - 1) / sqrt(tail)
  double minimum = 0;
  int64_t tail = 0;     ///< values at or above the minimum
  double distance = 0;  ///< Kolmogorov-Smirnov, of the tail
};

/// Maximum likelihood exponent, with the minimum at which the distance is smallest (Clauset,
/// Shalizi & Newman 2009), of at most 100 candidates. `sorted`: ascending; values that are not
/// positive are left out. nullopt: fewer than 25 are left, or none of the candidates has a spread.
std::optional<PowerLaw> fit_power_law(const std::vector<double>& sorted);

/// Whether the tail is a power law as far as the sample can tell:
/// - of 200 samples that are drawn from the fit (and below its minimum from the sample itself), and
///   fitted anew, at least a tenth is farther from its fit (Clauset's p >= 0.1; of true power laws
///   a tenth is refused), and
/// - an exponential tail is less likely, beyond doubt: Vuong's statistic is above 1.64.
/// The same for the same sample and seed. Costs up to 200 fits.
bool is_power_law(const std::vector<double>& sorted, const PowerLaw& fit, uint64_t seed);

}  // namespace tycho
