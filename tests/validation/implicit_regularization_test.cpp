// Gradient descent on quadratics, where the modified flow is in closed form mode by mode, and on a
// network.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
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

struct Descent {
  std::vector<double> curvature = {1};
  double rate = 0.1;
  double clip = 1;  // factor on the step that the settings do not say
  double momentum = 0;
  double weight_decay = 0;
  std::string optimizer = "SGD";
  std::string dtype = "double";
  double constant = 0;  // added to the loss
  bool sharpness = true;
  int steps = 100;
  uint32_t seed = 1;
};

/// Each step from a fresh point, so that nothing dies out: x_i^2 = 1/lambda_i on average.
Finding descend(const Descent& options) {
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {1, 1}, options.dtype);
  for (const char* name : {"loss", "modified_flow_excess", "modified_flow_predicted",
                           "modified_flow_step", "modified_flow_first", "implicit_regularizer",
                           "preconditioned_sharpness", "stability_threshold"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(options.rate);
  group.set_momentum(options.momentum);
  group.set_weight_decay(options.weight_decay);
  run.settings(0, options.optimizer, group);
  const auto modes = static_cast<Eigen::Index>(options.curvature.size());
  const Eigen::ArrayXd h = Eigen::Map<const Eigen::ArrayXd>(options.curvature.data(), modes);
  const auto loss = [&](const Eigen::ArrayXd& x) {
    return (h * x * x).sum() / 2 + options.constant;
  };
  for (int step = 0; step < options.steps; ++step) {
    Eigen::ArrayXd x(modes);
    for (Eigen::Index i = 0; i < modes; ++i) x[i] = normal(generator) / std::sqrt(h[i]);
    const Eigen::ArrayXd g = h * x;
    const Eigen::ArrayXd after = x - options.clip * options.rate * g;
    const Eigen::ArrayXd g_after = h * after;
    const double squares = g.square().sum() + g_after.square().sum();
    const double curvature = (g * h * g).sum() + (g_after * h * g_after).sum();
    run.step(step);
    run.put("loss", loss(x));
    run.put("modified_flow_excess", loss(after) - loss(x) + options.rate * squares / 2);
    run.put("modified_flow_predicted", -options.rate * options.rate / 4 * curvature);
    run.put("modified_flow_step", options.rate * curvature / squares);
    run.put("modified_flow_first", options.rate * squares / 2);
    run.put("implicit_regularizer", options.rate / 4 * g_after.square().sum());
    if (options.sharpness) {
      run.put("preconditioned_sharpness", h.maxCoeff());
      run.put("stability_threshold", 2 / options.rate);
    }
  }
  run.finish();
  return find(engine.findings(), "implicit_regularization", "run");
}

TEST(ImplicitRegularizationTest, OneModeHasItsClosedForm) {
  for (const double a : {0.02, 0.1, 0.3}) {
    Descent options;
    options.rate = a;
    const Finding finding = descend(options);
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
    EXPECT_NEAR(finding.measured, (1 - a) / (1 - a + a * a / 2), 1e-9);
  }
  // eta/4 |g'|^2 over the loss before is (eta/2) (1-eta)^2 of one mode of curvature 1: 4.05 %.
  const Finding finding = descend({});
  EXPECT_NE(finding.advice.find("4.1 % of the loss"), std::string::npos) << told(finding);
}

TEST(ImplicitRegularizationTest, SeveralModesHoldBelowTheEdge) {
  Descent options;
  options.curvature = {0.1, 0.3, 1, 2, 3};
  const Finding finding = descend(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
}

TEST(ImplicitRegularizationTest, ANetworkBelowTheEdgeFollowsIt) {
  for (const double rate : {0.02, 0.05}) {
    ToyRun options;
    options.learning_rate = rate;
    options.width = 20;
    options.every = 10;
    const Finding finding = find(train(options), "implicit_regularization", "run");
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  }
}

TEST(ImplicitRegularizationTest, StepsThatAreNotPlainDescentViolate) {
  for (const double clip : {0.9, 1.1}) {
    Descent options;
    options.clip = clip;
    const Finding finding = descend(options);
    EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
  }
  // The network, whose settings say more than is done.
  ToyRun options;
  options.learning_rate = 0.02;
  options.told_factor = 1.2;
  options.width = 20;
  options.every = 10;
  const Finding finding = find(train(options), "implicit_regularization", "run");
  EXPECT_NE(verdict(finding), "HOLDS") << told(finding);
}

TEST(ImplicitRegularizationTest, LongStepsAreNoViolation) {
  Descent options;
  // A sharp mode that holds a tenth of the squared gradient, and most of the second order.
  options.curvature = {0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 8};
  options.rate = 0.1;
  options.sharpness = false;
  EXPECT_NE(verdict(descend(options)), "VIOLATED");
  options.sharpness = true;
  EXPECT_NE(verdict(descend(options)), "VIOLATED");
  options.curvature = {19};
  EXPECT_EQ(verdict(descend(options)), "NOT_APPLICABLE");
  options.curvature = {6};
  options.sharpness = false;
  EXPECT_EQ(verdict(descend(options)), "NOT_APPLICABLE");
  // Of the toy network at its edge.
  ToyRun edge;
  edge.learning_rate = 0.4;
  edge.width = 20;
  EXPECT_EQ(verdict(find(train(edge), "implicit_regularization", "run")), "NOT_APPLICABLE");
}

TEST(ImplicitRegularizationTest, StaysSilentWithoutItsGate) {
  Descent momentum;
  momentum.momentum = 0.9;
  EXPECT_EQ(verdict(descend(momentum)), "NOT_APPLICABLE");
  Descent decay;
  decay.weight_decay = 0.1;
  EXPECT_EQ(verdict(descend(decay)), "NOT_APPLICABLE");
  Descent adam;
  adam.optimizer = "Adam";
  EXPECT_EQ(verdict(descend(adam)), "NOT_APPLICABLE");
  Descent rounded;
  rounded.dtype = "float";
  rounded.constant = 1e4;
  EXPECT_EQ(verdict(descend(rounded)), "NOT_APPLICABLE");
  Descent few;
  few.steps = 10;
  EXPECT_EQ(verdict(descend(few)), "NOT_YET");
  ToyRun nothing;
  nothing.steps = 50;
  nothing.measure_curvature = false;
  EXPECT_EQ(verdict(find(train(nothing), "implicit_regularization", "run")), "NOT_MEASURED");
}

/// Of one mode: (left side)/(right side) with a = eta h.
double one_mode(double a) { return (1 - a) / (1 - a + a * a / 2); }

Descent one(double rate) {
  Descent options;
  options.rate = rate;
  return options;
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(Descent&)>& change) {
  Descent options;
  change(options);
  return {"implicit_regularization", setting, expected, [options](uint32_t seed) {
            Descent seeded = options;
            seeded.seed = seed;
            return descend(seeded);
          }};
}

CalibrationCase with_truth(CalibrationCase setting, double truth) {
  setting.truth = truth;
  return setting;
}

const CalibrationCases kCases({
    with_truth(rates("quadratic of one mode, eta times its curvature 0.1", Expected::kHolds,
                     [](Descent& o) { o.rate = 0.1; }),
               one_mode(0.1)),
    rates("quadratic of five modes, eta times the sharpest 0.3", Expected::kHolds,
          [](Descent& o) {
            o.curvature = {0.1, 0.3, 1, 2, 3};
          }),
    {"implicit_regularization", "tanh network below its edge", Expected::kHolds,
     [](uint32_t seed) {
       ToyRun options;
       options.learning_rate = 0.05;
       options.width = 12;
       options.steps = 1000;
       options.every = 10;
       options.seed = seed;
       return find(train(options), "implicit_regularization", "run");
     }},
    rates("steps a tenth shorter than the settings say", Expected::kViolated,
          [](Descent& o) { o.clip = 0.9; }),
    rates("steps a tenth longer", Expected::kViolated, [](Descent& o) { o.clip = 1.1; }),
    rates("momentum", Expected::kSilent, [](Descent& o) { o.momentum = 0.9; }),
    rates("a mode at 0.95 of the edge", Expected::kSilent, [](Descent& o) { o.curvature = {19}; }),
    rates("a sharp mode that holds a tenth of the squared gradient", Expected::kSilent,
          [](Descent& o) {
            o.curvature = {0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 8};
            o.sharpness = false;
          }),
});

ClosedForm form(double a) {
  return {"implicit_regularization",
          "excess of the loss over its flow, over the predicted one, quadratic with a = eta h = " +
              std::to_string(a).substr(0, 4),
          "(1-a)/(1-a+a^2/2)",
          one_mode(a),
          [a](uint32_t seed) {
            Descent options = one(a);
            options.seed = seed;
            return descend(options);
          },
          1e-6};
}

const ClosedForms kForms({form(0.02), form(0.1), form(0.3)});

}  // namespace
}  // namespace tycho::analyzer
