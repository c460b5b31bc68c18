#pragma once

#include <Eigen/Core>
#include <optional>
#include <vector>

#include "src/schedule/loss_law.h"

namespace tycho::analyzer {

/// What a law says of a curve.
struct LossForecast {
  Eigen::VectorXd log_loss;
  Eigen::MatrixXd derivative;  ///< of log_loss by the parameters, a row a point
};

/// A law fitted to curves.
struct LossFit {
  LossLaw law;
  Eigen::VectorXd parameters;
  /// Of the parameters, by the scatter of the residuals, were these independent. An underestimate
  /// where they are not: LongRunVariance::inflation.
  Eigen::MatrixXd covariance;
  double scatter = 0;  ///< standard deviation of the residuals over their errors; 1 is expected
  /// Over their errors: (ln loss - ln law) / error, by curve. The errors have the fit's least one.
  std::vector<std::vector<double>> residuals;
  double degrees_of_freedom = 0;  ///< of the residuals

  LossForecast forecast(const LossCurve& curve) const;
};

struct LossFitOptions {
  /// Beyond so many errors a residual counts by its size instead of its square (Huber).
  double huber = 1.345;
  /// Errors of ln(loss) below this count as this: laws are not that good.
  double least_error = 1e-3;
};

/// The maximum of the posterior, over several starts: Huber's loss of the residuals of ln(loss),
/// and priors of the shapes, so that what the curves do not tell has a finite uncertainty. They are
/// wide, a factor of 4, but for b and g of the multi-power law: of the published fits of three
/// sizes these are within 3 % of each other, and curves of few schedules do not tell them from C.
///
/// Levenberg-Marquardt (MINPACK, as in Eigen) from starts whose linear parameters solve the least
/// squares. Deterministic. Points whose loss is NaN give rates only. Nothing where a loss is not
/// above 0, or there are fewer of them than twice the parameters. O(points * changes of the rate)
/// an evaluation, of which there are some hundred.
std::optional<LossFit> fit_loss_law(LossForm form, const std::vector<LossCurve>& curves,
                                    const LossFitOptions& options = {});

}  // namespace tycho::analyzer
