#include "src/schedule/fit_loss_law.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {
namespace {

constexpr double kPeak = 3e-4;
constexpr double kPi = 3.14159265358979323846;

using Schedule = std::function<double(double share)>;  // of the peak, behind the warm-up

/// Rates of `steps` steps, looked at every 100th, with a warm-up of 2000.
LossCurve schedule(double steps, const Schedule& of_peak) {
  LossCurve curve;
  constexpr double kWarmUp = 2000;
  LossCurvePoint before;
  for (double step = 100; step <= steps; step += 100) {
    LossCurvePoint point;
    point.step = step;
    point.rate =
        kPeak * (step < kWarmUp ? step / kWarmUp : of_peak((step - kWarmUp) / (steps - kWarmUp)));
    const bool jumps = std::fabs(point.rate - before.rate) > 0.1 * kPeak;
    point.sum = before.sum + 100 * (jumps ? before.rate : 0.5 * (before.rate + point.rate));
    point.loss = step < kWarmUp ? kUnknown : 0;
    curve.push_back(point);
    before = point;
  }
  return curve;
}

double constant(double) { return 1; }
double cosine(double share) { return 0.55 + 0.45 * std::cos(kPi * share); }
double step_down(double share) { return share < 0.4 ? 1 : 0.3; }
double late_decay(double share) { return share < 0.8 ? 1 : std::pow(0.1, (share - 0.8) / 0.2); }

/// The losses of `law`, with noise of their logarithms.
LossCurve with_losses(LossCurve curve, const LossLaw& law, const Eigen::VectorXd& parameters,
                      double noise, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Eigen::VectorXd value;
  law.evaluate(curve, parameters, &value, nullptr);
  for (size_t i = 0; i < curve.size(); ++i) {
    if (std::isnan(curve[i].loss)) continue;
    curve[i].loss = value[static_cast<Eigen::Index>(i)] * std::exp(noise * normal(generator));
    curve[i].error = noise;
  }
  return curve;
}

/// The multi-power law published for 100 million parameters; others of the same size.
LossLaw law_of(LossForm form, Eigen::VectorXd* parameters) {
  LossLaw law;
  law.form = form;
  law.peak = kPeak;
  law.steps = 1000;
  law.length = 1;
  std::vector<double> values = {2.65, 0.6, 0.45};
  if (form == LossForm::kAnnealing) values.insert(values.end(), {0.15, 0.5});
  if (form == LossForm::kMultiPower)
    values.insert(values.end(), {438 * kPeak, 2.13 * std::pow(kPeak, -0.655), 0.598, 0.655});
  parameters->resize(static_cast<Eigen::Index>(values.size()));
  for (size_t i = 0; i < values.size(); ++i)
    (*parameters)[static_cast<Eigen::Index>(i)] = std::log(values[i]);
  return law;
}

constexpr LossForm kForms[] = {LossForm::kPower, LossForm::kAnnealing, LossForm::kMultiPower};

TEST(LossLawTest, DerivativesAreThoseOfTheValues) {
  for (const LossForm form : kForms) {
    Eigen::VectorXd parameters;
    const LossLaw law = law_of(form, &parameters);
    const LossCurve curve = schedule(20000, cosine);
    Eigen::VectorXd value;
    Eigen::MatrixXd derivative;
    law.evaluate(curve, parameters, &value, &derivative);
    ASSERT_EQ(derivative.cols(), law.parameters());
    for (Eigen::Index j = 0; j < law.parameters(); ++j) {
      constexpr double kStep = 1e-5;
      Eigen::VectorXd above;
      Eigen::VectorXd below;
      Eigen::VectorXd moved = parameters;
      moved[j] += kStep;
      law.evaluate(curve, moved, &above, nullptr);
      moved[j] -= 2 * kStep;
      law.evaluate(curve, moved, &below, nullptr);
      const Eigen::VectorXd by = (above - below) / (2 * kStep);
      EXPECT_LT((by - derivative.col(j)).cwiseAbs().maxCoeff(), 1e-7)
          << to_string(form) << " parameter " << j;
    }
  }
}

TEST(LossLawTest, AFallOfTheRateAddsWhatTheFormulaSays) {
  Eigen::VectorXd parameters;
  const LossLaw law = law_of(LossForm::kMultiPower, &parameters);
  // Constant from the first step on, to a tenth at step 1000.
  LossCurve curve(3);
  curve[0] = {1, kPeak, kPeak, 0, 0};
  curve[1] = {1000, 0.1 * kPeak, 1000 * kPeak, 0, 0};
  curve[2] = {3000, 0.1 * kPeak, 1200 * kPeak, 0, 0};
  Eigen::VectorXd value;
  law.evaluate(curve, parameters, &value, nullptr);
  const auto free = [](double rate, double since) {
    return 1 - std::pow(1 + 2.13 * std::pow(rate, -0.655) * since, -0.598);
  };
  const double sum = 1200 * kPeak;
  const double rise = 438 * kPeak * free(kPeak, sum - kPeak);
  const double fall = 438 * 0.9 * kPeak * free(0.1 * kPeak, 200 * kPeak);
  EXPECT_NEAR(value[2], 2.65 + 0.6 * std::pow(sum, -0.45) + rise - fall, 1e-9);
}

TEST(LossLawTest, ConstantsAreInTheUnitsOfThePublication) {
  Eigen::VectorXd parameters;
  LossLaw law = law_of(LossForm::kMultiPower, &parameters);
  const std::vector<double> expected = {2.65, 0.6, 0.45, 438, 2.13, 0.598, 0.655};
  std::vector<double> constants = law.constants(parameters);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(constants[i] / expected[i], 1, 1e-9);
  law = law_of(LossForm::kAnnealing, &parameters);
  constants = law.constants(parameters);
  EXPECT_NEAR(constants[4], std::exp(-1 / 500.0), 1e-12);
  EXPECT_NEAR(constants[3], 0.15 / kPeak * (1 - constants[4]), 1e-9);
}

TEST(FitLossLawTest, FindsThePowerLawItWasMadeFrom) {
  Eigen::VectorXd truth;
  const LossLaw law = law_of(LossForm::kPower, &truth);
  int covered = 0;
  int compared = 0;
  constexpr int kSeeds = 60;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    const auto fit = fit_loss_law(LossForm::kPower,
                                  {with_losses(schedule(20000, constant), law, truth, 2e-3, seed)});
    ASSERT_TRUE(fit);
    EXPECT_NEAR(fit->scatter, 1, 0.3);
    const std::vector<double> constants = fit->law.constants(fit->parameters);
    for (Eigen::Index j : {0, 2}) {
      const double off = std::log(constants[static_cast<size_t>(j)]) - truth[j];
      covered += std::fabs(off) < 1.97 * std::sqrt(fit->covariance(j, j));
      ++compared;
    }
  }
  // 95 %, less what 60 correlated pairs may miss by chance.
  EXPECT_GE(covered, 0.85 * compared);
}

TEST(FitLossLawTest, ForecastsSchedulesThatWereNotFitted) {
  for (const LossForm form : {LossForm::kAnnealing, LossForm::kMultiPower}) {
    Eigen::VectorXd truth;
    const LossLaw law = law_of(form, &truth);
    for (uint32_t seed = 0; seed < 5; ++seed) {
      const auto fit = fit_loss_law(
          form, {with_losses(schedule(24000, cosine), law, truth, 1e-3, 10 * seed),
                 with_losses(schedule(24000, constant), law, truth, 1e-3, 10 * seed + 1),
                 with_losses(schedule(14000, step_down), law, truth, 1e-3, 10 * seed + 2)});
      ASSERT_TRUE(fit);
      for (const Schedule& held_out : {Schedule(late_decay), Schedule(cosine)}) {
        const LossCurve curve = with_losses(schedule(40000, held_out), law, truth, 0, 0);
        const LossForecast forecast = fit->forecast(curve);
        double worst = 0;
        for (size_t i = 0; i < curve.size(); ++i) {
          if (std::isnan(curve[i].loss)) continue;
          worst = std::max(worst, std::fabs(forecast.log_loss[static_cast<Eigen::Index>(i)] -
                                            std::log(curve[i].loss)));
        }
        EXPECT_LT(worst, 4e-3) << to_string(form) << " seed " << seed;
      }
    }
  }
}

TEST(FitLossLawTest, AnotherLawIsNotForecast) {
  // What an annealing sets free is no matter of the sum of rates alone.
  Eigen::VectorXd truth;
  const LossLaw law = law_of(LossForm::kMultiPower, &truth);
  const auto fit =
      fit_loss_law(LossForm::kPower, {with_losses(schedule(24000, constant), law, truth, 1e-3, 1)});
  ASSERT_TRUE(fit);
  const LossCurve curve = with_losses(schedule(24000, late_decay), law, truth, 0, 0);
  const double off = fit->forecast(curve).log_loss[static_cast<Eigen::Index>(curve.size()) - 1] -
                     std::log(curve.back().loss);
  EXPECT_GT(off, 0.02);
}

TEST(FitLossLawTest, IsNotThrownByAFewWildLosses) {
  Eigen::VectorXd truth;
  const LossLaw law = law_of(LossForm::kPower, &truth);
  LossCurve curve = with_losses(schedule(20000, constant), law, truth, 1e-3, 3);
  for (size_t i = 40; i < curve.size(); i += 40) curve[i].loss *= 3;
  const auto fit = fit_loss_law(LossForm::kPower, {curve});
  ASSERT_TRUE(fit);
  const LossForecast forecast =
      fit->forecast(with_losses(schedule(20000, constant), law, truth, 0, 0));
  Eigen::VectorXd value;
  law.evaluate(curve, truth, &value, nullptr);
  EXPECT_NEAR(forecast.log_loss[150], std::log(value[150]), 1e-3);
}

TEST(FitLossLawTest, TheSameCurvesGiveTheSameFit) {
  Eigen::VectorXd truth;
  const LossLaw law = law_of(LossForm::kAnnealing, &truth);
  const std::vector<LossCurve> curves = {with_losses(schedule(9000, cosine), law, truth, 1e-2, 5)};
  const auto first = fit_loss_law(LossForm::kAnnealing, curves);
  const auto second = fit_loss_law(LossForm::kAnnealing, curves);
  ASSERT_TRUE(first && second);
  EXPECT_TRUE((first->parameters.array() == second->parameters.array()).all());
}

TEST(FitLossLawTest, RefusesWhatHasNoLogarithmAndWhatIsTooShort) {
  Eigen::VectorXd truth;
  const LossLaw law = law_of(LossForm::kPower, &truth);
  const LossCurve good = with_losses(schedule(9000, constant), law, truth, 1e-2, 5);
  EXPECT_TRUE(fit_loss_law(LossForm::kPower, {good}));
  for (const double bad : {0.0, -1.0, std::numeric_limits<double>::infinity()}) {
    LossCurve curve = good;
    curve[30].loss = bad;
    EXPECT_FALSE(fit_loss_law(LossForm::kPower, {curve})) << bad;
  }
  LossCurve curve = good;
  curve[30].rate = kUnknown;
  EXPECT_FALSE(fit_loss_law(LossForm::kPower, {curve}));
  curve = good;
  curve.resize(25);  // 6 losses behind the warm-up
  EXPECT_TRUE(fit_loss_law(LossForm::kPower, {curve}));
  EXPECT_FALSE(fit_loss_law(LossForm::kMultiPower, {curve}));
  EXPECT_FALSE(fit_loss_law(LossForm::kPower, {}));
}

TEST(FitLossLawTest, WhateverItIsGivenTheResultIsFinite) {
  std::mt19937 generator(7);
  std::uniform_real_distribution<double> uniform(-8, 8);
  for (int trial = 0; trial < 60; ++trial) {
    LossCurve curve = schedule(6000, trial % 2 == 0 ? cosine : step_down);
    for (LossCurvePoint& point : curve) {
      point.loss = std::exp(trial % 3 == 0 ? 20 * uniform(generator) : uniform(generator));
      point.error = trial % 5 == 0 ? 0 : 0.1;
      if (trial % 7 == 0) point.rate *= 1e-300;
      if (trial % 7 == 0) point.sum *= 1e-300;
    }
    for (const LossForm form : kForms) {
      const auto fit = fit_loss_law(form, {curve});
      if (!fit) continue;
      EXPECT_TRUE(fit->parameters.allFinite());
      EXPECT_TRUE(fit->covariance.allFinite());
      EXPECT_TRUE(fit->forecast(curve).log_loss.allFinite());
    }
  }
}

}  // namespace
}  // namespace tycho::analyzer
