#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace tycho {

/// The distribution of eigenvalues of W'W / N for W with N x M independent entries of mean 0 and
/// variance 1, M <= N, in the limit of large matrices with M / N = ratio (Marchenko & Pastur 1967).
class MarchenkoPastur {
 public:
  /// `ratio` in (0, 1].
  explicit MarchenkoPastur(double ratio);
  double lower_edge() const;  ///< (1 - sqrt(ratio))^2
  double upper_edge() const;  ///< (1 + sqrt(ratio))^2
  /// Probability of at most x. By quadrature, error below 1e-5.
  double cumulative(double x) const;
  /// The x with cumulative(x) = p, for p in [0, 1].
  double quantile(double p) const;

 private:
  double at(size_t i) const;  // x of a node

  double ratio_;
  std::vector<double> cumulative_;  // from above, at nodes that are uniform in angle
};

/// What of a matrix's spectrum looks like noise, and what stands out of it.
struct SpectrumBulk {
  double deviation = 0;  ///< standard deviation of the entries of the noise
  double edge = 0;       ///< largest singular value that so much noise has in the limit
  int64_t spikes = 0;    ///< singular values beyond edge and margin
  double distance = 0;   ///< Kolmogorov-Smirnov distance of the rest from Marchenko-Pastur
};

/// Fits noise to the singular values (descending) of a matrix whose larger side is `larger`. The
/// variance is that at which the median eigenvalue of the rest is where noise has its own, so that
/// a few that stand out do not matter; those beyond the 99 % quantile of the largest eigenvalue of
/// noise (Tracy & Widom's first law, with the centre and scale of Johnstone 2001) are taken out,
/// until there are none. nullopt: fewer than 20 singular values, or more than half stand out or are
/// zero.
std::optional<SpectrumBulk> fit_bulk(const std::vector<double>& singular_values, int64_t larger);

}  // namespace tycho
