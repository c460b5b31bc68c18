// The critical sharpness of a network whose Hessian is known, and of curves on which it is in
// closed form: a parabola, a quartic and a parabola with a wall.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "toy_network.h"

namespace tycho::analyzer {
namespace {

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " [" + std::to_string(f.ci_low) + ", " +
         std::to_string(f.ci_high) + "] " + f.gate + " / " + f.advice;
}

TEST(CriticalSharpnessTest, AtTheEdgeItIsTheCurvatureAlongTheUpdateAndBelowTheSharpness) {
  ToyRun options;
  options.learning_rate = 0.4;
  options.width = 20;
  const auto findings = train(options);
  const Finding bound = find(findings, "critical_sharpness_bound", "run");
  EXPECT_EQ(verdict(bound), "HOLDS") << told(bound);
  EXPECT_LE(bound.measured, 1);
  const Finding agreement = find(findings, "critical_sharpness_agreement", "run");
  EXPECT_EQ(verdict(agreement), "HOLDS") << told(agreement);
}

TEST(CriticalSharpnessTest, WithMomentumThereIsNoBound) {
  ToyRun options;
  options.learning_rate = 0.1;
  options.momentum = 0.9;
  options.width = 20;
  const auto findings = train(options);
  EXPECT_EQ(verdict(find(findings, "critical_sharpness_bound", "run")), "NOT_APPLICABLE");
}

/// A loss of one parameter with its derivatives.
struct Curve {
  std::function<double(double)> value;
  std::function<double(double)> first;
  std::function<double(double)> second;
};

Curve parabola() {
  return {[](double x) { return x * x / 2; }, [](double x) { return x; },
          [](double) { return 1.0; }};
}

/// Along its gradient it is back at its start at -x: 2/(s_c eta) is x^2, a third of the curvature.
Curve quartic() {
  return {[](double x) { return x * x * x * x / 4; }, [](double x) { return x * x * x; },
          [](double x) { return 3 * x * x; }};
}

/// A parabola of curvature 1 down to its minimum, of another, c, behind it, where a longer step
/// meets it: 2/(s_c eta) = 2/(1 + 1/sqrt(c)).
Curve bent(double behind) {
  return {[behind](double x) { return (x > 0 ? 1 : behind) * x * x / 2; },
          [behind](double x) { return (x > 0 ? 1 : behind) * x; },
          [behind](double x) { return x > 0 ? 1.0 : behind; }};
}

struct Descent {
  Curve curve = parabola();
  std::string optimizer = "SGD";
  double momentum = 0;
  bool full_batch = true;
  bool own_batch = false;  // loss changes are those on other data
  int steps = 200;
  double rate = 0.01;
  uint32_t seed = 2;
};

std::vector<Finding> descend(const Descent& options) {
  const double rate = options.rate;
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {1, 1}, "double");
  for (const char* statistic :
       {"critical_sharpness", "preconditioned_sharpness", "stability_threshold", "loss",
        "probe_loss", "loss_change", "loss_change_first_order", "loss_change_second_order",
        "learning_rate"}) {
    run.statistic(statistic);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(rate);
  group.set_momentum(options.momentum);
  run.settings(0, options.optimizer, group);
  const Curve& curve = options.curve;
  double x = 1;
  for (int step = 0; step < options.steps; ++step) {
    const double before = curve.value(x);
    const double g = curve.first(x);
    const double update = -rate * g;
    double below = 0;
    double above = 1;
    while (curve.value(x + above * update) < before) {
      below = above;
      above *= 1.1;
    }
    for (int i = 0; i < 50; ++i) {
      const double middle = 0.5 * (below + above);
      (curve.value(x + middle * update) < before ? below : above) = middle;
    }
    const double second = 0.5 * curve.second(x) * update * update;
    x += update;
    run.step(step);
    run.put("loss", options.full_batch ? before : before * (1 + 0.1 * normal(generator)));
    run.put("probe_loss", curve.value(x));
    run.put("learning_rate", rate);
    run.put("loss_change", (curve.value(x) - before) * (options.own_batch ? 1.3 : 1));
    run.put("loss_change_first_order", g * update);
    run.put("loss_change_second_order", second);
    run.put("critical_sharpness", 2 / (above * rate));
    if (step % 3 == 0) {
      run.put("preconditioned_sharpness", curve.second(x));
      run.put("stability_threshold", 2 / rate);
    }
  }
  run.finish();
  return engine.findings();
}

TEST(CriticalSharpnessTest, OfAParabolaItIsTheSharpness) {
  const auto findings = descend({});
  for (const char* law : {"critical_sharpness_bound", "critical_sharpness_agreement"}) {
    const Finding finding = find(findings, law, "run");
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
    EXPECT_NEAR(finding.measured, 1, 1e-9);
  }
}

TEST(CriticalSharpnessTest, OfAQuarticFarFromTheCriticalStepItIsNoCurvature) {
  Descent options;
  options.curve = quartic();
  const auto findings = descend(options);
  EXPECT_EQ(verdict(find(findings, "critical_sharpness_bound", "run")), "HOLDS");
  const Finding finding = find(findings, "critical_sharpness_agreement", "run");
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << told(finding);
  EXPECT_TRUE(std::isnan(finding.measured)) << "not judged, so no number beside the prediction";
}

TEST(CriticalSharpnessTest, BehindAFlatterMinimumItIsBelowTheCurvature) {
  Descent options;
  options.curve = bent(0.25);
  options.rate = 0.4;
  const auto findings = descend(options);
  EXPECT_EQ(verdict(find(findings, "critical_sharpness_bound", "run")), "HOLDS");
  const Finding finding = find(findings, "critical_sharpness_agreement", "run");
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
  EXPECT_NEAR(finding.measured, 2.0 / 3, 1e-6);
  EXPECT_NE(finding.advice.find("flatter"), std::string::npos);
}

TEST(CriticalSharpnessTest, AWallViolatesBoth) {
  Descent options;
  options.curve = bent(25);
  options.rate = 0.2;
  const auto findings = descend(options);
  for (const char* law : {"critical_sharpness_bound", "critical_sharpness_agreement"}) {
    const Finding finding = find(findings, law, "run");
    EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
    EXPECT_NEAR(finding.measured, 1 / 0.6, 1e-6);
  }
}

TEST(CriticalSharpnessTest, StaysSilentWithoutItsGate) {
  const auto verdicts = [](const Descent& options) {
    const auto findings = descend(options);
    return verdict(find(findings, "critical_sharpness_bound", "run")) + " " +
           verdict(find(findings, "critical_sharpness_agreement", "run"));
  };
  Descent batch;
  batch.full_batch = false;
  // On the probe batch both terms of the agreement see the same loss.
  EXPECT_EQ(verdicts(batch), "NOT_APPLICABLE HOLDS");
  batch.own_batch = true;
  EXPECT_EQ(verdicts(batch), "NOT_APPLICABLE NOT_APPLICABLE");
  Descent adam;
  adam.optimizer = "Adam";
  EXPECT_EQ(verdicts(adam), "NOT_APPLICABLE HOLDS");
  Descent few;
  few.steps = 10;
  EXPECT_EQ(verdicts(few), "NOT_YET NOT_YET");
}

CalibrationCase rates(const std::string& law, const std::string& setting, Expected expected,
                      Descent options) {
  return {law, setting, expected, [law, options](uint32_t seed) {
            Descent seeded = options;
            seeded.seed = seed;
            return find(descend(seeded), law, "run");
          }};
}

Descent of(const Curve& curve, double rate, bool own_batch = false) {
  Descent options;
  options.curve = curve;
  options.rate = rate;
  options.own_batch = own_batch;
  options.full_batch = !own_batch;
  return options;
}

const CalibrationCases kCases({
    rates("critical_sharpness_bound", "parabola", Expected::kHolds, {}),
    rates("critical_sharpness_bound", "a wall behind the minimum", Expected::kViolated,
          of(bent(25), 0.2)),
    rates("critical_sharpness_bound", "loss changes on other data", Expected::kSilent,
          of(parabola(), 0.01, true)),
    rates("critical_sharpness_agreement", "parabola", Expected::kHolds, {}),
    rates("critical_sharpness_agreement", "flatter behind the minimum", Expected::kViolated,
          of(bent(0.25), 0.4)),
    rates("critical_sharpness_agreement", "loss changes on other data", Expected::kSilent,
          of(parabola(), 0.01, true)),
});

ClosedForm form(const std::string& law, const std::string& curve, const std::string& formula,
                double value, const Descent& options) {
  return {law,
          "2/(s_c eta) over the curvature, " + curve,
          formula,
          value,
          [law, options](uint32_t) { return find(descend(options), law, "run"); },
          1e-5};
}

const ClosedForms kForms({
    form("critical_sharpness_bound", "parabola", "1", 1, {}),
    form("critical_sharpness_bound", "x^4/4 along its gradient", "1/3", 1.0 / 3,
         of(quartic(), 0.01)),
    form("critical_sharpness_agreement", "parabola with a quarter of the curvature behind it",
         "1/(1 + 1/sqrt c) 2", 2.0 / 3, of(bent(0.25), 0.4)),
    form("critical_sharpness_agreement", "parabola with a wall of curvature 25 behind it",
         "1/(1 + 1/sqrt c) 2", 1 / 0.6, of(bent(25), 0.2)),
});

}  // namespace
}  // namespace tycho::analyzer
