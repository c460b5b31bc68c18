// Steps on a network whose loss, gradient and Hessian are exact.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "toy_network.h"

namespace tycho::analyzer {
namespace {

Finding judged(const ToyRun& options) {
  return find(train(options), "one_step_loss_change", "run");
}

TEST(OneStepLossChangeTest, SmallStepsAreQuadraticAndMayGrow) {
  ToyRun options;
  options.learning_rate = 0.01;
  options.every = 10;
  const Finding finding = judged(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.gate;
  EXPECT_NEAR(finding.measured, finding.predicted, 0.01);
  EXPECT_GT(finding.measured, 0.9);
  EXPECT_NE(finding.advice.find("times as long"), std::string::npos) << finding.advice;
}

TEST(OneStepLossChangeTest, SharesOfLayersSumToOne) {
  ToyRun options;
  options.learning_rate = 0.05;
  const auto findings = train(options);
  double sum = 0;
  for (const char* layer : {"layer:0", "layer:2", "layer:4"})
    sum += find(findings, "one_step_loss_change", layer).measured;
  EXPECT_NEAR(sum, 1, 1e-9);
}

// A quadratic with one curvature: r = 1 - eta h / 2 exactly.
std::vector<Finding> quadratic(double eta_h, bool third_order, double first_sign = -1,
                               double loss = 1, double edge_ratio = 0, uint32_t seed = 1,
                               double momentum = 0) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> uniform(0.5, 1.5);
  Engine engine;
  SimulatedRun run(engine);
  const uint32_t layer = run.add_layer("0");
  run.add_parameter(layer, "weight", {1, 1}, "float");
  for (const char* name :
       {"loss", "loss_change", "loss_change_first_order", "loss_change_second_order",
        "preconditioned_sharpness", "stability_threshold"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(0.1);
  group.set_momentum(momentum);
  run.settings(0, "SGD", group);
  for (int step = 0; step < 200; ++step) {
    const double first = first_sign * 1e-3 * uniform(generator);
    const double second = -first * eta_h / 2;
    run.step(step);
    run.put("loss", loss);
    run.put("loss_change", first + second + (third_order ? -0.3 * first : 0));
    run.put("loss_change_first_order", first);
    run.put("loss_change_second_order", second);
    if (edge_ratio > 0) {
      run.put("preconditioned_sharpness", edge_ratio * 20);
      run.put("stability_threshold", 20);
    }
  }
  run.finish();
  return engine.findings();
}

TEST(OneStepLossChangeTest, TheGainRatioIsThatOfTheQuadratic) {
  for (const double eta_h : {0.1, 1.0, 2.0, 2.5}) {
    const Finding finding = find(quadratic(eta_h, false), "one_step_loss_change", "run");
    EXPECT_EQ(verdict(finding), "HOLDS") << finding.gate;
    EXPECT_NEAR(finding.measured, 1 - eta_h / 2, 1e-9);
  }
  const Finding overshoot = find(quadratic(2.5, false), "one_step_loss_change", "run");
  EXPECT_NE(overshoot.advice.find("raise the loss"), std::string::npos) << overshoot.advice;
  EXPECT_GT(overshoot.importance, 0.8);
  // r = 0.95: ten times.
  const Finding shorter = find(quadratic(0.1, false), "one_step_loss_change", "run");
  EXPECT_NE(shorter.advice.find("about 10 times as long"), std::string::npos) << shorter.advice;
}

TEST(OneStepLossChangeTest, AdvisesNoLargerStepsWhereCurvatureElsewhereLeavesNoRoom) {
  const auto advice = [](double edge_ratio) {
    return find(quadratic(0.1, false, -1, 1, edge_ratio), "one_step_loss_change", "run").advice;
  };
  EXPECT_NE(advice(0.1).find("Raise the learning rate"), std::string::npos);
  EXPECT_EQ(advice(0.9).find("Raise the learning rate"), std::string::npos);
  EXPECT_NE(advice(0.9).find("0.9 of the edge"), std::string::npos) << advice(0.9);
}

// Under momentum an update is a sum over many gradients: that one is short says nothing about the
// learning rate.
TEST(OneStepLossChangeTest, UnderMomentumNoStepIsALearningRate) {
  const Finding finding =
      find(quadratic(0.1, false, -1, 1, 0, 1, 0.9), "one_step_loss_change", "run");
  EXPECT_EQ(finding.advice.find("Raise the learning rate"), std::string::npos) << finding.advice;
  EXPECT_NE(finding.advice.find("about 10 steps"), std::string::npos) << finding.advice;
  EXPECT_LT(finding.importance, 0.5);
}

TEST(OneStepLossChangeTest, ThirdOrderViolates) {
  const Finding finding = find(quadratic(0.5, true), "one_step_loss_change", "run");
  EXPECT_EQ(verdict(finding), "VIOLATED") << finding.gate;
}

TEST(OneStepLossChangeTest, AdvisesNothingWhereTheLossIsNoLongerFinite) {
  const Finding finding =
      find(quadratic(0.1, false, -1, std::nan("")), "one_step_loss_change", "run");
  EXPECT_EQ(finding.advice, "") << finding.advice;
}

TEST(OneStepLossChangeTest, StaysSilentWithoutItsGate) {
  EXPECT_EQ(verdict(find(quadratic(0.5, true, 1), "one_step_loss_change", "run")), "UNDERPOWERED");
  EXPECT_EQ(verdict(find(quadratic(0.5, true, -1, 1e5), "one_step_loss_change", "run")),
            "NOT_APPLICABLE");
  ToyRun options;
  options.steps = 100;
  EXPECT_EQ(verdict(judged(options)), "NOT_YET");
  options.measure_curvature = false;
  EXPECT_EQ(verdict(judged(options)), "NOT_MEASURED");
}

CalibrationCase rates(const std::string& setting, Expected expected, double eta_h, bool third,
                      double sign) {
  CalibrationCase result{"one_step_loss_change", setting, expected, [=](uint32_t seed) {
                           return find(quadratic(eta_h, third, sign, 1, 0, seed),
                                       "one_step_loss_change", "run");
                         }};
  if (expected == Expected::kHolds) result.truth = 1 - eta_h / 2;
  return result;
}

const CalibrationCases kCases({
    rates("quadratic, step half as long as the best", Expected::kHolds, 0.5, false, -1),
    rates("quadratic, step beyond the longest that lowers the loss", Expected::kHolds, 2.5, false,
          -1),
    rates("third order of 0.3 of the first", Expected::kViolated, 0.5, true, -1),
    rates("updates that go uphill", Expected::kSilent, 0.5, true, 1),
});

ClosedForm form(double eta_h) {
  return {
      "one_step_loss_change",
      "loss change over its first order, quadratic, eta h = " + std::to_string(eta_h).substr(0, 3),
      "1 - eta h/2",
      1 - eta_h / 2,
      [eta_h](uint32_t seed) {
        return find(quadratic(eta_h, false, -1, 1, 0, seed), "one_step_loss_change", "run");
      },
      1e-6};
}

const ClosedForms kForms({form(0.1), form(1), form(2), form(2.5)});

}  // namespace
}  // namespace tycho::analyzer
