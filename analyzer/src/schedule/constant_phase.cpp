#include "src/schedule/constant_phase.h"

#include <algorithm>
#include <cmath>

#include "src/schedule/forecast_error.h"
#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

constexpr double kConstant = 0.98;  // of the peak
constexpr double kWander = 0.1;     // of the gain
constexpr size_t kFewest = 24;      // points

}  // namespace

ConstantPhase constant_phase(const LossCurve& curve, double peak) {
  ConstantPhase result;
  while (result.begin < curve.size() && curve[result.begin].rate < kConstant * peak) ++result.begin;
  result.end = result.begin;
  while (result.end < curve.size() && curve[result.end].rate >= kConstant * peak) ++result.end;
  return result;
}

std::optional<LookAhead> look_ahead(const LossCurve& curve, size_t begin, size_t end, double more) {
  if (end < begin + kFewest) return std::nullopt;
  const LossCurve known = losses_within(curve, begin, end);
  const auto fit = fit_loss_law(LossForm::kPower, {known});
  if (!fit) return std::nullopt;
  LossCurvePoint later = known.back();
  later.step += more;
  later.sum += more * later.rate;
  const LossForecast at = fit->forecast({known.back(), later});
  LookAhead result;
  result.loss = std::exp(at.log_loss[0]);
  const double then = std::exp(at.log_loss[1]);
  result.gain = result.loss - then;
  const ForecastError error(curve, begin, end, *fit);
  if (error.wanders * result.loss > kWander * result.gain) return std::nullopt;
  const Eigen::VectorXd by = at.derivative.row(0) * result.loss - at.derivative.row(1) * then;
  const double half = student_t_quantile(0.95, error.freedom) *
                      error.of_difference(by, *fit, result.loss, result.gain);
  result.low = std::max(0.0, result.gain - half);
  result.high = result.gain + half;
  return result;
}

}  // namespace tycho::analyzer
