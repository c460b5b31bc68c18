// A small network trained by full-batch gradient descent, with momentum and with Adam: whether it
// is at its edge is known from its exact curvature.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "toy_network.h"

namespace tycho::analyzer {
namespace {

Finding edge(const ToyRun& options) { return find(train(options), "edge_of_stability", "run"); }

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " [" + std::to_string(f.ci_low) + ", " +
         std::to_string(f.ci_high) + "] " + f.gate + " / " + f.advice;
}

TEST(EdgeOfStabilityTest, GradientDescentHoldsAtItsEdge) {
  for (const uint32_t seed : {1u, 2u}) {
    ToyRun options;
    options.learning_rate = 0.4;
    options.steps = 8000;
    options.seed = seed;
    const Finding finding = edge(options);
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
    EXPECT_NEAR(finding.measured, 1, 0.03) << told(finding);
  }
}

// Momentum at a high learning rate: training passes the edge between two measurements and does not
// come back. Nobody must be told to raise the learning rate.
TEST(EdgeOfStabilityTest, ADivergedRunIsToldSo) {
  for (const double learning_rate : {0.3, 0.5}) {
    ToyRun options;
    options.learning_rate = learning_rate;
    options.momentum = 0.9;
    options.steps = 1000;
    const Finding finding = edge(options);
    EXPECT_EQ(verdict(finding), "NOT_YET") << told(finding);
    EXPECT_EQ(finding.advice.find("larger"), std::string::npos) << told(finding);
    EXPECT_NE(finding.advice.find("diverged"), std::string::npos) << told(finding);
    EXPECT_GT(finding.importance, 0.8);
  }
}

TEST(EdgeOfStabilityTest, AdamHoldsAtItsEdge) {
  ToyRun options;
  options.optimizer = "Adam";
  options.learning_rate = 3e-3;
  options.steps = 8000;
  const Finding finding = edge(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_NEAR(finding.measured, 0.93, 0.1) << told(finding);
}

TEST(EdgeOfStabilityTest, MomentumBelowItsEdgeIsNoViolationAndSaysTheHeadRoom) {
  ToyRun options;
  options.learning_rate = 0.02;
  options.momentum = 0.9;
  options.steps = 3000;
  const Finding finding = edge(options);
  EXPECT_EQ(verdict(finding), "NOT_YET") << told(finding);
  EXPECT_LT(finding.measured, 0.5);
  EXPECT_NE(finding.advice.find("times larger"), std::string::npos) << told(finding);
}

TEST(EdgeOfStabilityTest, ClippedStepsAreAViolation) {
  // The optimizer is told four times the learning rate that acts: the run sits at what it thinks is
  // four times the edge, and trains on.
  ToyRun options;
  options.learning_rate = 0.4;
  options.told_factor = 4;
  options.steps = 8000;
  const Finding finding = edge(options);
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
  EXPECT_NE(finding.advice.find("clipped"), std::string::npos) << told(finding);
}

// One direction of a quadratic with curvature s times the edge, a full batch, plus a constant
// slope. For `rises` the loss goes up and down by a tenth at every step.
struct Series {
  double ratio = 1;
  double error = 0.01;
  double growth = 1;  // of the loss, per step
  bool rises = true;
  int steps = 200;
  bool full_batch = true;
  double noise_scale = 0;  // over the batch size; 0: not measured
  double epsilon_share = 0;
  std::string optimizer = "SGD";
  bool interaction = false;                            // E[g_B'H g_B]/|G|^2 at exactly 2/eta
  std::string statistic = "preconditioned_sharpness";  // what was recorded of it
  double weight_decay = 0;
  int every = 1;        // steps between observations of the sharpness
  double decay_at = 2;  // share of the run after which the learning rate is a tenth
  uint32_t seed = 3;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
};

Finding judge_series(const Series& options) {
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {10, 10});
  for (const std::string& name :
       {std::string("loss"), std::string("probe_loss"), std::string("batch_size"),
        std::string("grad_dot_update"), std::string("stability_threshold"), options.statistic,
        options.statistic + "_error_bound", std::string("gradient_noise_interaction"),
        std::string("grad_noise_trace"), std::string("grad_signal_sq"),
        std::string("epsilon_floor_share")}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(0.1);
  group.set_weight_decay(options.weight_decay);
  group.set_momentum(options.momentum);
  group.set_dampening(options.dampening);
  group.set_nesterov(options.nesterov);
  run.settings(0, options.optimizer, group);
  double level = 1;
  double before = 1;
  for (int step = 0; step < options.steps; ++step) {
    level *= options.growth;
    const double after = level * (options.rises && step % 2 == 0 ? 1.1 : 1);
    run.step(step);
    run.put("loss", options.full_batch ? before : before * (1 + 0.1 * normal(generator)));
    run.put("probe_loss", after);
    before = after;
    run.put("batch_size", 32);
    if (options.noise_scale > 0) {
      run.put("grad_noise_trace", 32 * options.noise_scale);
      run.put("grad_signal_sq", 1 + 0.01 * normal(generator));
    }
    if (step % options.every != 0) continue;
    const double threshold = step < options.decay_at * options.steps ? 20 : 200;
    const double sharpness =
        20 * options.ratio * (1 + 0.01 * normal(generator)) - options.weight_decay;
    if (options.statistic == "hessian_eigenvalue") {
      run.put(options.statistic, v1::SCOPE_INDEX, {sharpness, 0.5 * sharpness});
      run.put(options.statistic + "_error_bound", v1::SCOPE_INDEX, {20 * options.error, 0});
    } else {
      run.put(options.statistic, sharpness);
      run.put(options.statistic + "_error_bound", 20 * options.error);
    }
    if (options.statistic == "preconditioned_sharpness") run.put("stability_threshold", threshold);
    if (options.interaction) run.put("gradient_noise_interaction", 20);
    run.put("epsilon_floor_share", v1::SCOPE_PARAMETER, {options.epsilon_share});
  }
  run.finish();
  return find(engine.findings(), "edge_of_stability", "run");
}

TEST(EdgeOfStabilityTest, StatesHaveTheirVerdicts) {
  Series at;
  EXPECT_EQ(verdict(judge_series(at)), "HOLDS") << told(judge_series(at));
  Series monotone;
  monotone.rises = false;
  monotone.growth = 0.99;
  EXPECT_EQ(verdict(judge_series(monotone)), "NOT_YET") << told(judge_series(monotone));
  Series catapult;
  catapult.ratio = 1.6;
  catapult.growth = 1.02;
  const Finding rising = judge_series(catapult);
  EXPECT_EQ(verdict(rising), "NOT_YET");
  EXPECT_NE(rising.advice.find("lower the learning rate"), std::string::npos) << told(rising);
  EXPECT_GT(rising.importance, 0.8);
  Series below;
  below.ratio = 0.4;
  const Finding room = judge_series(below);
  EXPECT_EQ(verdict(room), "NOT_YET");
  EXPECT_NE(room.advice.find("about 2.5 times larger"), std::string::npos) << told(room);
  below.growth = 1.02;  // whatever makes it rise, it is no time for a higher learning rate
  EXPECT_EQ(judge_series(below).advice, "") << told(judge_series(below));
  below.growth = 1;
  below.ratio = -0.1;
  EXPECT_NE(judge_series(below).advice.find("No positive curvature"), std::string::npos);
}

// For plain SGD the Hessian's largest eigenvalue is what the optimizer feels, whoever recorded it,
// and the threshold follows from the settings.
TEST(EdgeOfStabilityTest, TakesTheSharpnessThatIsThere) {
  for (const char* statistic : {"sharpness", "hessian_eigenvalue"}) {
    SCOPED_TRACE(statistic);
    Series plain;
    plain.statistic = statistic;
    plain.steps = 2000;
    plain.every = 50;
    const Finding finding = judge_series(plain);
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
    EXPECT_NEAR(finding.measured, 1, 0.02);
    EXPECT_EQ(finding.evidence_statistic, statistic);
    plain.ratio = 0.4;
    EXPECT_NEAR(judge_series(plain).measured, 0.4, 0.01);
    EXPECT_NE(judge_series(plain).advice.find("times larger"), std::string::npos)
        << told(judge_series(plain));
    // What is recorded is smaller by the decay that the optimizer adds to the Hessian.
    plain.ratio = 1;
    plain.weight_decay = 5;
    EXPECT_EQ(verdict(judge_series(plain)), "HOLDS") << told(judge_series(plain));
    plain.optimizer = "Adam";
    const Finding adaptive = judge_series(plain);
    EXPECT_EQ(verdict(adaptive), "NOT_MEASURED") << told(adaptive);
    EXPECT_NE(adaptive.gate.find("every(\"preconditioned_sharpness\", 50)"), std::string::npos)
        << told(adaptive);
  }
}

// With a budget no two steps in a row may be observed. A full batch is told then by what one step
// changes.
TEST(EdgeOfStabilityTest, KnowsAFullBatchFromSingleSteps) {
  for (const bool full : {true, false}) {
    std::mt19937 generator(5);
    std::normal_distribution<double> normal;
    Engine engine;
    SimulatedRun run(engine);
    run.add_parameter(run.add_layer("0"), "weight", {10, 10});
    for (const char* name : {"loss", "probe_loss", "grad_dot_update", "sharpness"})
      run.statistic(name);
    run.open();
    v1::ParameterGroup group;
    group.set_learning_rate(0.2);
    run.settings(0, "SGD", group);
    for (int step = 0; step < 2000; step += 8) {
      const double level = 0.3 * (1 + 0.002 * normal(generator));
      run.step(step);
      run.put("loss", full ? level : level * (1 + 0.05 * normal(generator)));
      run.put("probe_loss", level + (step % 16 == 0 ? 2e-4 : -5e-4));
      run.put("grad_dot_update", -6e-4);
      run.put("sharpness", 10.04 * (1 + 0.01 * normal(generator)));
    }
    run.finish();
    const Finding finding = find(engine.findings(), "edge_of_stability", "run");
    EXPECT_EQ(verdict(finding), full ? "HOLDS" : "NOT_MEASURED") << told(finding);
  }
}

TEST(EdgeOfStabilityTest, TheErrorBoundWidensTheInterval) {
  Series coarse;
  coarse.error = 0.3;
  const Finding finding = judge_series(coarse);
  EXPECT_EQ(verdict(finding), "UNDERPOWERED") << told(finding);
  EXPECT_LT(finding.ci_low, 0.71);
  EXPECT_GT(finding.ci_high, 1.29);
}

TEST(EdgeOfStabilityTest, ALaterDecayDoesNotEraseTheEdge) {
  Series decayed;
  decayed.decay_at = 0.7;
  EXPECT_EQ(verdict(judge_series(decayed)), "HOLDS") << told(judge_series(decayed));
}

TEST(EdgeOfStabilityTest, StaysSilentWithoutItsGate) {
  Series small;
  small.full_batch = false;
  small.noise_scale = 10;
  const Finding noisy = judge_series(small);
  EXPECT_EQ(verdict(noisy), "NOT_APPLICABLE") << told(noisy);
  EXPECT_TRUE(std::isnan(noisy.measured)) << "no number beside a prediction that is not made";
  EXPECT_NE(noisy.gate.find("small batch"), std::string::npos);
  small.noise_scale = 0.01;
  EXPECT_EQ(verdict(judge_series(small)), "HOLDS") << told(judge_series(small));
  small.noise_scale = 0;
  EXPECT_EQ(verdict(judge_series(small)), "NOT_MEASURED") << told(judge_series(small));
  Series floored;
  floored.optimizer = "Adam";
  floored.epsilon_share = 0.5;
  EXPECT_EQ(verdict(judge_series(floored)), "NOT_APPLICABLE");
  EXPECT_NE(judge_series(floored).gate.find("artifact"), std::string::npos);
  // A stationary SGD below its edge has g'Hg/|G|^2 near 2/eta: that is no edge.
  Series stationary;
  stationary.ratio = 0.3;
  stationary.interaction = true;
  EXPECT_EQ(verdict(judge_series(stationary)), "NOT_YET");
  Series brief;
  brief.steps = 10;
  EXPECT_EQ(verdict(judge_series(brief)), "NOT_YET");
}

CalibrationCase rates(const std::string& setting, Expected expected, const Series& options) {
  CalibrationCase result{"edge_of_stability", setting, expected, [options](uint32_t seed) {
                           Series seeded = options;
                           seeded.seed = seed;
                           return judge_series(seeded);
                         }};
  if (expected == Expected::kHolds) result.truth = options.ratio;
  return result;
}

const CalibrationCases kCases({
    rates("sharpness at the edge, loss not monotone", Expected::kHolds, {}),
    rates("sharpness at 1.6 of the edge, and the loss does not rise", Expected::kViolated, {1.6}),
    rates("the same, and the loss rises", Expected::kSilent, {1.6, 0.01, 1.02}),
    rates("sharpness at half the edge", Expected::kSilent, {0.5}),
    rates("at the edge, loss monotone", Expected::kSilent, {1, 0.01, 0.99, false}),
});

/// The learning rate times the sharpness at which the law says that the edge is.
ClosedForm threshold(const std::string& optimizer, const std::string& formula, double value,
                     const Series& options) {
  return {"edge_of_stability",
          "edge of " + optimizer + ", in units of 1/eta",
          formula,
          value,
          [options](uint32_t seed) {
            Series seeded = options;
            seeded.statistic = "sharpness";
            seeded.seed = seed;
            const Finding finding = judge_series(seeded);
            constexpr double kSharpness = 20 * 0.1;
            Finding edge;
            edge.measured = kSharpness / finding.measured;
            edge.ci_low = kSharpness / finding.ci_high;
            edge.ci_high = kSharpness / finding.ci_low;
            return edge;
          },
          0.01};
}

Series with_momentum(double momentum, bool nesterov = false) {
  Series options;
  options.momentum = momentum;
  options.nesterov = nesterov;
  return options;
}

const ClosedForms kForms({
    threshold("gradient descent", "2", 2, {}),
    threshold("heavy ball, momentum 0.9", "2 + 2 beta", 3.8, with_momentum(0.9)),
    threshold("Nesterov, momentum 0.9", "(2 + 2 beta)/(1 + 2 beta)", 3.8 / 2.8,
              with_momentum(0.9, true)),
    {"edge_of_stability", "plateau of the sharpness over the edge, tanh network 1-40-40-1, eta 0.4",
     "Cohen et al. 2021: at or just above 1", 1,
     [](uint32_t) {
       ToyRun options;
       options.learning_rate = 0.4;
       options.steps = 8000;
       return edge(options);
     },
     0.03},
});

}  // namespace
}  // namespace tycho::analyzer
