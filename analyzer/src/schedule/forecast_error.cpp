#include "src/schedule/forecast_error.h"

#include <algorithm>
#include <cmath>

#include "src/statistics/long_run_variance.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {
namespace {

constexpr double kLargestDoubt = 0.05;  // that the residuals tell their correlation time
constexpr double kLawError = 0.05;      // of a change that is forecast

double error_of(const LossCurvePoint& point) {
  return std::max(point.error, LossFitOptions().least_error);
}

double mean_square(const std::vector<double>& values, size_t begin) {
  double sum = 0;
  for (size_t i = begin; i < values.size(); ++i) sum += values[i] * values[i];
  return sum / static_cast<double>(values.size() - begin);
}

}  // namespace

LossCurve losses_within(const LossCurve& curve, size_t begin, size_t end) {
  LossCurve result(curve.begin(), curve.begin() + static_cast<std::ptrdiff_t>(end));
  for (size_t i = 0; i < begin; ++i) result[i].loss = kUnknown;
  return result;
}

CurveMean curve_mean(const LossCurve& curve, size_t begin, size_t end,
                     const LossForecast* forecast) {
  CurveMean result;
  double weights = 0;
  if (forecast != nullptr) result.derivative.setZero(forecast->derivative.cols());
  for (size_t i = begin; i < end; ++i) {
    if (std::isnan(curve[i].loss)) continue;
    const double weight = 1 / (error_of(curve[i]) * error_of(curve[i]));
    weights += weight;
    result.value += weight * std::log(curve[i].loss);
    if (forecast == nullptr) continue;
    const auto row = static_cast<Eigen::Index>(i);
    result.value -= weight * forecast->log_loss[row];
    result.derivative += weight * forecast->derivative.row(row).transpose();
  }
  result.value /= weights;
  result.variance = 1 / weights;
  if (forecast != nullptr) result.derivative /= weights;
  return result;
}

ForecastError::ForecastError(const LossCurve& curve, size_t begin, size_t end, const LossFit& fit) {
  const std::vector<double>& residuals = fit.residuals.front();
  const LongRunVariance spread = long_run_variance(residuals);
  inflation = std::max(1.0, spread.inflation);
  freedom = std::min(spread.degrees_of_freedom, fit.degrees_of_freedom);
  // Later bins are means over more steps: where the noise is correlated for longer than the first
  // ones, they are the noisier for their number.
  const double all = mean_square(residuals, 0);
  const double later = mean_square(residuals, residuals.size() / 2);
  const double grows = all > 0 ? std::max(1.0, later / all) : 1;
  noise = grows * inflation * fit.scatter * fit.scatter;
  if (spread.too_slow <= kLargestDoubt) return;
  double sum = 0;
  size_t r = 0;
  for (size_t i = begin; i < end; ++i) {
    if (std::isnan(curve[i].loss)) continue;
    const double off = residuals[r++] * error_of(curve[i]);
    sum += off * off;
  }
  wanders = std::sqrt(sum / static_cast<double>(r));
}

double ForecastError::of(const CurveMean& off, const LossFit& fit, double change) const {
  return std::sqrt(noise * off.variance + wanders * wanders +
                   kLawError * kLawError * change * change +
                   inflation * off.derivative.dot(fit.covariance * off.derivative));
}

double ForecastError::of_difference(const Eigen::VectorXd& derivative, const LossFit& fit,
                                    double loss, double gain) const {
  return std::sqrt(wanders * wanders * loss * loss + kLawError * kLawError * gain * gain +
                   inflation * derivative.dot(fit.covariance * derivative));
}

}  // namespace tycho::analyzer
