#pragma once

#include <cstddef>
#include <vector>

namespace tycho::analyzer {

/// How uncertain the mean of an autocorrelated series is.
struct LongRunVariance {
  /// Variance of the mean over that of as many independent values, as the interval needs it: its
  /// half width is sqrt(inflation * s^2 / n) times Student's quantile of `degrees_of_freedom`, with
  /// s^2 = sum of squared deviations / (n - 1).
  double inflation = 1;
  double degrees_of_freedom = 0;
  /// Posterior probability that fewer than 4 independent values are left of the series. Its
  /// correlation time cannot be told from it where this is more than a few percent.
  double too_slow = 1;
};

/// Of the mean of `series`, equally spaced and with at least 4 + `trend` values.
///
/// `trend`: so many coefficients of the lowest frequencies are left out, because a trend was taken
/// from the series that holds them: 1 for a straight line, 2 for a parabola. s^2 is then the sum of
/// squared deviations / (n - 1 - trend), and there are as many degrees of freedom.
///
/// The mean of a stationary series has the variance f(0)/n, f being its spectral density. The
/// coefficients of the discrete cosine transform are nearly independent with the variances
/// f(pi j/n) (exactly so for white noise). f is one of a grid of shapes: white; autoregressive with
/// correlation times from 1 to n values, to which white noise is added; and blue, of a series whose
/// sum stays bounded, as that of the increments of a stationary quantity. Given the shape the mean
/// is distributed as Student's t with n - 1 degrees of freedom. The result is the average over the
/// shapes by their posterior probability (Whittle's likelihood, the scale integrated out with its
/// Jeffreys prior), as one t distribution that has the same quantiles at 95 % and at 99.9 %. So
/// what is not known of the correlation widens the interval, instead of being estimated by one
/// number that is too small as often as not.
///
/// Prior: white 0.6, blue 0.1, autoregressive 0.3, flat over the logarithm of the correlation time.
/// What no estimate can do: find a slow part hidden below noise in a series shorter than a few of
/// its correlation times. Whoever knows that there is one says so (BlockAverages::ratio). Measured
/// coverage: docs/validation.md. O(n^2 + 50 n): 50 microseconds for 64 values. Thread-safe.
LongRunVariance long_run_variance(const std::vector<double>& series, size_t trend = 0);

}  // namespace tycho::analyzer
