// The published curves of the multi-power law (Luo et al. 2025, arXiv:2503.12811), which are not a
// part of this project: TYCHO_LOSS_CURVES names the folder that holds 25M/, 100M/ and 400M/ of
// github.com/thu-yao-01-luo/MultiPowerLaw, as step, lr, loss. Three schedules are fitted, the
// others are held out.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "src/schedule/fit_loss_law.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {
namespace {

constexpr double kPeak = 3e-4;
constexpr double kWarmUp = 2160;  // steps
constexpr double kJump = 0.1;     // of the peak
const std::vector<std::string> kFitted = {"cosine_24000", "constant_24000", "wsdcon_9"};
const std::vector<std::string> kHeldOut = {"wsd_20000_24000", "wsdld_20000_24000", "cosine_72000",
                                           "constant_72000",  "wsdcon_3",          "wsdcon_18"};

struct Size {
  std::string name;
  std::vector<double> published;  // L0, A, a, B, C, b, g
  double r_squared;               // published means over what is held out
  double absolute;
};
const std::vector<Size> kSizes = {
    {"25M", {3.0405, .5247, .5079, 363.79, 2.0656, .5828, .6414}, .9988, .0038},
    {"100M", {2.6514, .6012, .4530, 437.95, 2.1325, .5979, .6552}, .9983, .0044},
    {"400M", {2.3747, .6542, .4288, 523.42, 2.0246, .5935, .6347}, .9978, .0048}};

std::string folder() {
  const char* path = std::getenv("TYCHO_LOSS_CURVES");
  return path == nullptr ? "" : path;
}

bool is_there(const Size& size) {
  return !folder().empty() && std::filesystem::exists(folder() + "/" + size.name);
}

LossCurve load(const Size& size, const std::string& schedule) {
  LossCurve curve;
  const auto add = [&](double step, double rate, double loss) {
    LossCurvePoint point{step, rate, 0, loss, 0};
    const LossCurvePoint before = curve.empty() ? LossCurvePoint() : curve.back();
    const bool jumps = std::fabs(rate - before.rate) > kJump * kPeak;
    point.sum =
        before.sum + (step - before.step) * (jumps ? before.rate : 0.5 * (before.rate + rate));
    curve.push_back(point);
  };
  constexpr int kRamp = 64;
  for (int i = 1; i < kRamp; ++i) add(kWarmUp * i / kRamp, kPeak * i / kRamp, kUnknown);
  add(kWarmUp, kPeak, kUnknown);
  std::ifstream file(folder() + "/" + size.name + "/" + schedule + ".csv");
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    double step = 0;
    double rate = 0;
    double loss = 0;
    char comma = 0;
    fields >> step >> comma >> rate >> comma >> loss;
    add(step, rate, loss);
  }
  EXPECT_GT(curve.size(), kRamp + 50u) << size.name << " " << schedule;
  return curve;
}

struct Errors {
  double r_squared = 0;
  double absolute = 0;
};

Errors errors(const LossCurve& curve, const Eigen::VectorXd& forecast) {
  double mean = 0;
  double count = 0;
  for (const LossCurvePoint& point : curve) {
    if (std::isnan(point.loss)) continue;
    mean += point.loss;
    ++count;
  }
  mean /= count;
  double residual = 0;
  double total = 0;
  Errors result;
  for (size_t i = 0; i < curve.size(); ++i) {
    if (std::isnan(curve[i].loss)) continue;
    const double off = forecast[static_cast<Eigen::Index>(i)] - curve[i].loss;
    residual += off * off;
    total += (curve[i].loss - mean) * (curve[i].loss - mean);
    result.absolute += std::fabs(off) / count;
  }
  result.r_squared = 1 - residual / total;
  return result;
}

/// Means over the schedules that are held out.
template <typename Forecast>
Errors held_out(const Size& size, const Forecast& forecast) {
  Errors mean;
  for (const std::string& schedule : kHeldOut) {
    const LossCurve curve = load(size, schedule);
    const Errors each = errors(curve, forecast(curve));
    std::printf("%-5s %-18s R^2 %.4f  MAE %.5f\n", size.name.c_str(), schedule.c_str(),
                each.r_squared, each.absolute);
    mean.r_squared += each.r_squared / static_cast<double>(kHeldOut.size());
    mean.absolute += each.absolute / static_cast<double>(kHeldOut.size());
  }
  std::printf("%-5s mean               R^2 %.5f MAE %.5f\n", size.name.c_str(), mean.r_squared,
              mean.absolute);
  return mean;
}

TEST(LossCurvesTest, ThePublishedConstantsGiveThePublishedErrors) {
  if (folder().empty()) GTEST_SKIP() << "TYCHO_LOSS_CURVES is not set";
  for (const Size& size : kSizes) {
    if (!is_there(size)) continue;
    LossLaw law;
    law.form = LossForm::kMultiPower;
    law.peak = kPeak;
    std::vector<double> scaled = size.published;
    scaled[3] *= kPeak;
    scaled[4] *= std::pow(kPeak, -scaled[6]);
    Eigen::VectorXd parameters(7);
    for (size_t j = 0; j < 7; ++j) parameters[static_cast<Eigen::Index>(j)] = std::log(scaled[j]);
    const Errors mean = held_out(size, [&](const LossCurve& curve) {
      Eigen::VectorXd value;
      law.evaluate(curve, parameters, &value, nullptr);
      return value;
    });
    EXPECT_NEAR(mean.r_squared, size.r_squared, 1e-4) << size.name;
    EXPECT_NEAR(mean.absolute, size.absolute, 1e-4) << size.name;
  }
}

/// Fitted here: `worse` bounds the unexplained variance, relative to what is published.
void expect_fit(LossForm form, double worse) {
  if (folder().empty()) GTEST_SKIP() << "TYCHO_LOSS_CURVES is not set";
  for (const Size& size : kSizes) {
    if (!is_there(size)) continue;
    std::vector<LossCurve> curves;
    for (const std::string& schedule : kFitted) curves.push_back(load(size, schedule));
    LossFitOptions options;
    options.huber = 1;  // of 1e-3 in ln(loss), as published
    const auto fit = fit_loss_law(form, curves, options);
    ASSERT_TRUE(fit);
    const Errors mean = held_out(size, [&](const LossCurve& curve) {
      return Eigen::VectorXd(fit->forecast(curve).log_loss.array().exp());
    });
    EXPECT_GT(mean.r_squared, 1 - worse * (1 - size.r_squared)) << size.name;
    EXPECT_LT(mean.absolute, std::sqrt(worse) * size.absolute) << size.name;
  }
}

TEST(LossCurvesTest, TheMultiPowerLawFittedHereForecastsAsWell) {
  expect_fit(LossForm::kMultiPower, 1.6);
}

TEST(LossCurvesTest, TheAnnealingLawForecastsThemToo) { expect_fit(LossForm::kAnnealing, 2); }

}  // namespace
}  // namespace tycho::analyzer
