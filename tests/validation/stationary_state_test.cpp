// Stationary states whose laws are known: a noisy quadratic under SGD (fluctuation-dissipation) and
// scale-invariant random walks (rotational equilibrium, stationarity of the norm).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "stationary_states.h"

namespace tycho::analyzer {
namespace {

TEST(FluctuationDissipationTest, HoldsAtRestAndSeldomCriesWolf) {
  constexpr int kSeeds = 20;
  const std::vector<v1::ParameterGroup> groups = {sgd(0.05, 0.01, 0.9), sgd(0.2, 0.01, 0),
                                                  sgd(0.1, 0.01, 0.5, 0.3)};
  for (const v1::ParameterGroup& group : groups) {
    int violated = 0;
    int holds = 0;
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
      Quadratic options;
      options.group = group;
      const auto findings = train_quadratic(options, seed);
      const Finding finding = find(findings, "fluctuation_dissipation", "run");
      EXPECT_NEAR(finding.measured, 1, 0.05);
      holds += finding.verdict == Verdict::kHolds;
      violated += finding.verdict == Verdict::kViolated;
    }
    EXPECT_LE(violated, 1) << group.momentum();
    EXPECT_GE(holds, 17) << group.momentum();
  }
}

TEST(FluctuationDissipationTest, SaysWhatToDoAtRest) {
  const auto findings = train_quadratic({}, 1);
  const Finding finding = find(findings, "fluctuation_dissipation", "run");
  EXPECT_EQ(verdict(finding), "HOLDS");
  EXPECT_NE(finding.advice.find("noise floor"), std::string::npos);
  EXPECT_EQ(verdict(find(findings, "fluctuation_dissipation", "param:0.weight")), "HOLDS");
}

TEST(FluctuationDissipationTest, TransientDoesNotHold) {
  Quadratic options;
  options.group = sgd(1e-5, 0.01, 0);  // relaxes in 1e5 steps
  options.steps = 10000;
  options.start = 50;
  const Finding finding = find(train_quadratic(options, 1), "fluctuation_dissipation", "run");
  EXPECT_TRUE(finding.verdict == Verdict::kNotYet || finding.verdict == Verdict::kUnderpowered)
      << verdict(finding);
}

TEST(FluctuationDissipationTest, ClippedGradientsViolateAtRest) {
  for (const double momentum : {0.0, 0.9}) {
    Quadratic options;
    options.group = sgd(momentum > 0 ? 0.05 : 0.3, 0.01, momentum);
    options.clip = 8;  // the norm is about 15
    options.steps = 60000;
    const Finding finding = find(train_quadratic(options, 1), "fluctuation_dissipation", "run");
    EXPECT_EQ(verdict(finding), "VIOLATED") << finding.gate << " " << finding.measured;
  }
}

TEST(FluctuationDissipationTest, FinalDecayDoesNotEraseTheConstantPart) {
  Quadratic options;
  options.decays = true;
  const Finding finding = find(train_quadratic(options, 1), "fluctuation_dissipation", "run");
  EXPECT_EQ(verdict(finding), "HOLDS");
  EXPECT_LT(finding.window_end, options.steps * 3 / 4);
}

TEST(FluctuationDissipationTest, StaysSilentWhereItIsNotDerived) {
  Quadratic no_decay;
  no_decay.steps = 200;
  no_decay.group = sgd(0.05, 0, 0.9);
  Quadratic nesterov;
  nesterov.steps = 200;
  nesterov.group.set_nesterov(true);
  Quadratic with_adam;
  with_adam.steps = 200;
  with_adam.optimizer = "Adam";
  with_adam.group = adam(0.01, 0.01);
  for (const Quadratic& options : {no_decay, nesterov, with_adam}) {
    EXPECT_EQ(verdict(find(train_quadratic(options, 1), "fluctuation_dissipation", "run")),
              "NOT_APPLICABLE");
  }
}

TEST(RotationalEquilibriumTest, HoldsForScaleInvariantWeights) {
  struct Case {
    std::string optimizer;
    v1::ParameterGroup group;
    double predicted;
  };
  const std::vector<Case> cases = {
      {"SGD", sgd(0.1, 0.01, 0), std::sqrt(2 * 0.1 * 0.01)},
      {"SGD", sgd(0.1, 0.01, 0.9), std::sqrt(2 * 0.1 * 0.01 / 1.9)},
      {"SGD", sgd(0.1, 0.02, 0.5, 0.5), std::sqrt(2 * 0.05 * 0.02 / 1.5)},
      {"AdamW", adam(0.01, 0.2), std::sqrt(2 * 0.01 * 0.2 * 0.1 / 1.9)},
  };
  for (const Case& c : cases) {
    int violated = 0;
    int holds = 0;
    for (uint32_t seed = 0; seed < 10; ++seed) {
      Rotation options;
      options.optimizer = c.optimizer;
      options.group = c.group;
      const Finding finding =
          find(rotate(options, seed), "rotational_equilibrium", "param:0.weight");
      EXPECT_NEAR(finding.predicted, c.predicted, 1e-12);
      holds += finding.verdict == Verdict::kHolds;
      violated += finding.verdict == Verdict::kViolated;
      if (seed == 0) {
        EXPECT_NEAR(finding.measured / finding.predicted, 1, 0.04) << c.optimizer << finding.gate;
      }
    }
    EXPECT_GE(holds, 6) << c.optimizer << " momentum " << c.group.momentum();
    EXPECT_EQ(violated, 0) << c.optimizer << " momentum " << c.group.momentum();
  }
}

TEST(RotationalEquilibriumTest, WeightsThatAreNotInvariantDoNotHold) {
  Rotation options;
  options.radial = 0.02;  // twice the weight decay again
  const Finding finding = find(rotate(options, 1), "rotational_equilibrium", "param:0.weight");
  EXPECT_EQ(verdict(finding), "VIOLATED") << finding.gate;
  EXPECT_GT(finding.measured, finding.predicted);
}

TEST(RotationalEquilibriumTest, StaysSilentWithoutItsGate) {
  Rotation short_run;
  short_run.steps = 500;  // three relaxation times are 750
  const Finding early = find(rotate(short_run, 1), "rotational_equilibrium", "param:0.weight");
  EXPECT_EQ(verdict(early), "NOT_YET");
  EXPECT_NE(early.gate.find("750"), std::string::npos) << early.gate;
  Rotation coupled;
  coupled.optimizer = "Adam";
  coupled.group = adam(0.01, 0.2);
  coupled.steps = 100;
  EXPECT_EQ(verdict(find(rotate(coupled, 1), "rotational_equilibrium", "param:0.weight")),
            "NOT_APPLICABLE");
  Rotation not_found;
  not_found.invariant = false;
  not_found.steps = 100;
  EXPECT_EQ(verdict(find(rotate(not_found, 1), "rotational_equilibrium", "run")), "NOT_APPLICABLE");
}

TEST(NormStationarityTest, HoldsAtRest) {
  const Finding finding = find(rotate({}, 1), "norm_stationarity", "param:0.weight");
  EXPECT_EQ(verdict(finding), "HOLDS");
  EXPECT_NEAR(finding.measured, 1, 0.05);
}

TEST(NormStationarityTest, GrowingNormIsNotYet) {
  Rotation options;
  options.group = sgd(0.1, 1e-7, 0);
  const Finding finding = find(rotate(options, 1), "norm_stationarity", "param:0.weight");
  EXPECT_EQ(verdict(finding), "NOT_YET");
  EXPECT_NE(finding.gate.find("growing"), std::string::npos);
}

TEST(NormStationarityTest, WithoutDecayItIsNotApplicable) {
  Rotation options;
  options.group = sgd(0.1, 0, 0);
  options.steps = 100;
  EXPECT_EQ(verdict(find(rotate(options, 1), "norm_stationarity", "run")), "NOT_APPLICABLE");
}

CalibrationCase quadratic_rates(const std::string& setting, Expected expected,
                                const Quadratic& options) {
  CalibrationCase result{"fluctuation_dissipation", setting, expected, [options](uint32_t seed) {
                           return find(train_quadratic(options, seed), "fluctuation_dissipation",
                                       "run");
                         }};
  if (expected == Expected::kHolds) result.truth = 1;
  return result;
}

CalibrationCase rotation_rates(const std::string& law, const std::string& setting,
                               Expected expected, const Rotation& options) {
  CalibrationCase result{law, setting, expected, [law, options](uint32_t seed) {
                           return find(rotate(options, seed), law, "param:0.weight");
                         }};
  result.predicted_is_true = expected == Expected::kHolds;
  // An interval needs 16 memories of the norm beyond the 3 that it comes to rest in.
  result.power = 0.4;
  return result;
}

CalibrationCase clipped(CalibrationCase setting) {
  setting.runs = 40;
  return setting;
}

Quadratic quadratic(v1::ParameterGroup group, int steps, double start = 1, double clip = 0) {
  Quadratic options;
  options.group = std::move(group);
  options.steps = steps;
  options.start = start;
  options.clip = clip;
  return options;
}

Rotation rotation(const std::string& optimizer, v1::ParameterGroup group, int steps,
                  double radial = 0) {
  Rotation options;
  options.optimizer = optimizer;
  options.group = std::move(group);
  options.steps = steps;
  options.radial = radial;
  return options;
}

const CalibrationCases kCases({
    quadratic_rates("noisy quadratic at rest, SGD, 4000 steps", Expected::kHolds,
                    quadratic(sgd(0.2, 0.01, 0), 4000)),
    quadratic_rates("the same with momentum 0.9", Expected::kHolds,
                    quadratic(sgd(0.05, 0.01, 0.9), 4000)),
    quadratic_rates("the same, 1000 steps", Expected::kHolds,
                    quadratic(sgd(0.05, 0.01, 0.9), 1000)),
    quadratic_rates("far from rest: 4000 of 100 000 steps that it takes", Expected::kSilent,
                    quadratic(sgd(1e-5, 0.01, 0), 4000, 50)),
    clipped(quadratic_rates("clipped gradients at rest, 60 000 steps", Expected::kViolated,
                            quadratic(sgd(0.3, 0.01, 0), 60000, 1, 8))),
    rotation_rates("rotational_equilibrium", "scale-invariant weights, SGD, 6000 steps",
                   Expected::kHolds, rotation("SGD", sgd(0.1, 0.02, 0), 6000)),
    rotation_rates("rotational_equilibrium", "the same with momentum 0.9, 2000 steps",
                   Expected::kHolds, rotation("SGD", sgd(0.1, 0.01, 0.9), 2000)),
    rotation_rates("rotational_equilibrium", "AdamW, 6000 steps", Expected::kHolds,
                   rotation("AdamW", adam(0.01, 0.2), 6000)),
    rotation_rates("rotational_equilibrium", "momentum 0.99, 2000 steps: 10 of its memories",
                   Expected::kSilent, rotation("SGD", sgd(0.1, 0.01, 0.99), 2000)),
    rotation_rates("rotational_equilibrium", "weights pulled along themselves", Expected::kViolated,
                   rotation("SGD", sgd(0.1, 0.01, 0), 6000, 0.02)),
    rotation_rates("norm_stationarity", "scale-invariant weights at rest, 3000 steps",
                   Expected::kHolds, rotation("SGD", sgd(0.1, 0.01, 0), 3000)),
    rotation_rates("norm_stationarity", "a norm that grows", Expected::kSilent,
                   rotation("SGD", sgd(0.1, 1e-7, 0), 2000)),
});

ClosedForm angle(const std::string& setting, const std::string& formula, double value,
                 const Rotation& options) {
  return {"rotational_equilibrium",
          "angle of a step of scale-invariant weights, " + setting,
          formula,
          value,
          [options](uint32_t seed) {
            return find(rotate(options, seed), "rotational_equilibrium", "param:0.weight");
          },
          0.06};
}

ClosedForm relation(const std::string& setting, const v1::ParameterGroup& group) {
  return {"fluctuation_dissipation",
          "<theta.(g + lambda theta)> over (1+mu)/(2 eta (1-d)) <|dtheta|^2>, " + setting,
          "1",
          1,
          [group](uint32_t seed) {
            return find(train_quadratic(quadratic(group, 20000), seed), "fluctuation_dissipation",
                        "run");
          },
          0.05};
}

const ClosedForms kForms({
    angle("SGD, eta 0.1, lambda 0.02", "sqrt(2 eta lambda)", std::sqrt(2 * 0.1 * 0.02),
          rotation("SGD", sgd(0.1, 0.02, 0), 20000)),
    angle("momentum 0.9, eta 0.1, lambda 0.01", "sqrt(2 eta lambda/(1+mu))",
          std::sqrt(2 * 0.1 * 0.01 / 1.9), rotation("SGD", sgd(0.1, 0.01, 0.9), 20000)),
    angle("momentum and dampening 0.5, eta 0.1, lambda 0.02", "sqrt(2 eta (1-d) lambda/(1+mu))",
          std::sqrt(2 * 0.05 * 0.02 / 1.5), rotation("SGD", sgd(0.1, 0.02, 0.5, 0.5), 20000)),
    angle("AdamW, eta 0.01, lambda 0.2", "sqrt(2 eta lambda (1-beta1)/(1+beta1))",
          std::sqrt(2 * 0.01 * 0.2 * 0.1 / 1.9), rotation("AdamW", adam(0.01, 0.2), 20000)),
    {"norm_stationarity", "-2 <w.dw>/<|dw|^2> of scale-invariant weights at rest", "1", 1,
     [](uint32_t seed) {
       return find(rotate(rotation("SGD", sgd(0.1, 0.02, 0), 6000), seed), "norm_stationarity",
                   "param:0.weight");
     },
     0.1},
    relation("SGD", sgd(0.2, 0.01, 0)),
    relation("momentum 0.9", sgd(0.05, 0.01, 0.9)),
    relation("momentum 0.5, dampening 0.3", sgd(0.1, 0.01, 0.5, 0.3)),
});

}  // namespace
}  // namespace tycho::analyzer
