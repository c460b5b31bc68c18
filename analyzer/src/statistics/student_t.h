#pragma once

namespace tycho::analyzer {

/// Two-sided quantile: P(|t| <= result) = confidence. Infinity for no degrees of freedom.
double student_t_quantile(double confidence, double degrees_of_freedom);

/// P(T > t), one-sided.
double student_t_tail(double t, double degrees_of_freedom);

/// The same for t >= 0 to 3 % of its value from 7 degrees of freedom on and down to 1e-4, in 30
/// nanoseconds (Wallace 1959).
double fast_student_t_tail(double t, double degrees_of_freedom);

/// The degrees of freedom at which the 99.9 % quantile is `ratio` times the 95 % one, within [0.5,
/// 1000].
double freedom_of_quantile_ratio(double ratio);

}  // namespace tycho::analyzer
