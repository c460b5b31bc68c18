#pragma once

#include <Eigen/Core>
#include <cstddef>

#include "src/schedule/fit_loss_law.h"

namespace tycho::analyzer {

/// The points before `end`; the losses of those before `begin` are taken away, and their rates are
/// not.
LossCurve losses_within(const LossCurve& curve, size_t begin, size_t end);

/// A mean over points, weighted by the inverse squares of their errors.
struct CurveMean {
  double value = 0;            ///< of ln(loss), or of ln(loss) less its forecast
  double variance = 0;         ///< by the errors of the points, were these independent
  Eigen::VectorXd derivative;  ///< of the forecast by the law's parameters; empty without one
};

/// Of the points from `begin` to `end` that have a loss; `forecast`, of the same curve, may be
/// nullptr.
CurveMean curve_mean(const LossCurve& curve, size_t begin, size_t end,
                     const LossForecast* forecast);

/// How far a curve may be from the forecast of a law though it follows it: by the noise of its
/// points and by the uncertainty of the fit, both as much larger as the residuals of the fit are
/// correlated and grow along it, and by 5 % of the change that is forecast, which is what such laws
/// are good to (of the annealing law of simulated runs: docs/validation.md).
struct ForecastError {
  ForecastError() = default;
  /// `fit` was made of the losses of `curve` from `begin` to `end`.
  ForecastError(const LossCurve& curve, size_t begin, size_t end, const LossFit& fit);

  double inflation = 1;  ///< of variances, by the correlation of the residuals
  double noise = 1;      ///< variance of points, over the squares of their errors
  /// Root mean square of the residuals of ln(loss) where their correlation time cannot be told: the
  /// law does not describe the curve any better. 0: it can be.
  double wanders = 0;
  double freedom = 0;  ///< degrees of freedom

  /// Standard error of `off`, the mean of ln(loss) less its forecast, where ln(loss) is forecast to
  /// change by `change`.
  double of(const CurveMean& off, const LossFit& fit, double change) const;
  /// Standard error of a difference of two losses of the law itself, of the size `gain` and with
  /// `derivative` by the law's parameters, where the loss is `loss`.
  double of_difference(const Eigen::VectorXd& derivative, const LossFit& fit, double loss,
                       double gain) const;
};

}  // namespace tycho::analyzer
