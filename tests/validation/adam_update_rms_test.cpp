// Adam on gradients whose signal-to-noise ratio is known.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;
constexpr double kNoiseFloorSq = (1 - kBeta1) / (1 + kBeta1);

struct Options {
  double signal_to_noise = 0;  // mean^2 / variance
  bool alternating = false;    // the mean changes sign at each step
  double growth = 1;           // factor on the gradient per step
  double early = 1;            // factor on the gradient at first, which decays to 1 ...
  double decays_in = 100;      // ... in about so many steps
  int observed_every = 1;      // steps
  int steps = 6000;
  double epsilon_share = 0;
  int share_every = 1;  // steps; 0: never. In between U is known from updates alone
  std::string optimizer = "Adam";
};

std::vector<Finding> simulate(const Options& options, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  const uint32_t layer = run.add_layer("0");
  run.add_parameter(layer, "weight", {10, 10});
  for (const char* name : {"adam_update_rms", "epsilon_floor_share", "update_norm_sq",
                           "weight_dot_update", "weight_norm_sq", "grad_norm_sq"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(1e-3);
  group.set_beta1(kBeta1);
  group.set_beta2(kBeta2);
  run.settings(0, options.optimizer, group);
  constexpr size_t kEntries = 100;
  std::vector<double> first(kEntries, 0.0);
  std::vector<double> second(kEntries, 0.0);
  double scale = 1;
  double power1 = 1;
  double power2 = 1;
  for (int step = 0; step < options.steps; ++step) {
    power1 *= kBeta1;
    power2 *= kBeta2;
    const double sign = options.alternating && step % 2 == 1 ? -1 : 1;
    double square = 0;
    double gradient = 0;
    for (size_t i = 0; i < kEntries; ++i) {
      const double g = scale * (1 + (options.early - 1) * std::exp(-step / options.decays_in)) *
                       (sign * std::sqrt(options.signal_to_noise) + normal(generator));
      gradient += g * g;
      first[i] = kBeta1 * first[i] + (1 - kBeta1) * g;
      second[i] = kBeta2 * second[i] + (1 - kBeta2) * g * g;
      const double m = first[i] / (1 - power1);
      // What lies on the floor is not moved.
      if (options.share_every != 1 &&
          static_cast<double>(i) < options.epsilon_share * static_cast<double>(kEntries)) {
        continue;
      }
      square += m * m / (second[i] / (1 - power2)) / kEntries;
    }
    scale *= options.growth;
    if (step % options.observed_every != 0) continue;
    run.step(step);
    run.put("grad_norm_sq", v1::SCOPE_PARAMETER, {gradient});
    if (options.share_every == 1) {
      run.put("adam_update_rms", v1::SCOPE_PARAMETER, {std::sqrt(square)});
    } else {
      run.put("update_norm_sq", v1::SCOPE_PARAMETER, {1e-6 * square * kEntries});
      run.put("weight_dot_update", v1::SCOPE_PARAMETER, {0.0});
      run.put("weight_norm_sq", v1::SCOPE_PARAMETER, {1.0});
    }
    if (options.share_every > 0 && step % options.share_every == 0)
      run.put("epsilon_floor_share", v1::SCOPE_PARAMETER, {options.epsilon_share});
  }
  run.finish();
  return engine.findings();
}

Finding judged(const Options& options, uint32_t seed) {
  return find(simulate(options, seed), "adam_update_rms", "param:0.weight");
}

TEST(AdamUpdateRmsTest, HoldsForIndependentGradients) {
  for (const double rho : {0.0, 0.1, 1.0, 10.0}) {
    int violated = 0;
    int holds = 0;
    for (uint32_t seed = 0; seed < 10; ++seed) {
      Options options;
      options.signal_to_noise = rho;
      const Finding finding = judged(options, seed);
      EXPECT_NEAR(finding.measured, std::sqrt((rho + kNoiseFloorSq) / (rho + 1)), 0.01) << rho;
      violated += finding.verdict == Verdict::kViolated;
      holds += finding.verdict == Verdict::kHolds;
    }
    EXPECT_EQ(violated, 0) << rho;
    EXPECT_GE(holds, 9) << rho;
  }
}

TEST(AdamUpdateRmsTest, AlternatingGradientsViolate) {
  Options options;
  options.signal_to_noise = 4;
  options.alternating = true;
  const Finding finding = judged(options, 1);
  EXPECT_EQ(verdict(finding), "VIOLATED");
  EXPECT_NE(finding.advice.find("oscillates"), std::string::npos);
}

// Training that converges: the second moment still holds the large gradients of the beginning, and
// steps are smaller than noise alone would make them. Over seeds, heights, lengths and cadences.
TEST(AdamUpdateRmsTest, GradientsThatShrinkAreNoOscillation) {
  int runs = 0;
  int violated = 0;
  for (const double early : {3.0, 10.0, 100.0}) {
    for (const double decays_in : {30.0, 300.0, 3000.0}) {
      for (uint32_t seed = 0; seed < 10; ++seed) {
        Options options;
        options.early = early;
        options.decays_in = decays_in;
        options.steps = 2000 + 500 * static_cast<int>(seed);
        options.observed_every = seed % 2 == 0 ? 1 : 37;
        options.signal_to_noise = seed % 3 == 0 ? 0.2 : 0;
        ++runs;
        violated += judged(options, seed).verdict == Verdict::kViolated;
      }
    }
  }
  EXPECT_EQ(runs, 90);
  EXPECT_LE(violated, 1);
}

TEST(AdamUpdateRmsTest, AnOscillationIsFoundWhileGradientsShrink) {
  int found = 0;
  for (uint32_t seed = 0; seed < 10; ++seed) {
    Options options;
    options.alternating = true;
    options.signal_to_noise = 10;
    options.early = 3;
    options.decays_in = 2000;
    options.steps = 4000;
    found += judged(options, seed).verdict == Verdict::kViolated;
  }
  EXPECT_GE(found, 9);
}

TEST(AdamUpdateRmsTest, GrowingGradientsViolate) {
  Options options;
  options.signal_to_noise = 10;
  options.growth = 1.01;
  options.steps = 20000;  // until the bias correction is 1
  const Finding finding = judged(options, 1);
  EXPECT_EQ(verdict(finding), "VIOLATED")
      << finding.measured << " [" << finding.ci_low << ", " << finding.ci_high << "]";
  EXPECT_NE(finding.advice.find("second moment"), std::string::npos);
}

// A third of the entries gets no gradient but rounding, as biases of keys in attention do. Updates
// are seen at every step, how many entries are on the floor now and then, or never.
TEST(AdamUpdateRmsTest, EntriesOnTheFloorAreNoOscillation) {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    Options options;
    options.epsilon_share = 1.0 / 3;
    options.share_every = 20;
    EXPECT_EQ(verdict(judged(options, seed)), "NOT_APPLICABLE");
    options.share_every = 0;
    const Finding blind = judged(options, seed);
    EXPECT_EQ(verdict(blind), "UNDERPOWERED");
    EXPECT_NE(blind.gate.find("epsilon's floor"), std::string::npos) << blind.gate;
  }
  Options oscillates;
  oscillates.alternating = true;
  oscillates.signal_to_noise = 10;
  oscillates.share_every = 20;
  EXPECT_EQ(verdict(judged(oscillates, 1)), "VIOLATED") << "still found";
}

TEST(AdamUpdateRmsTest, StaysSilentWithoutItsGate) {
  Options floored;
  floored.epsilon_share = 0.5;
  EXPECT_EQ(verdict(judged(floored, 1)), "NOT_APPLICABLE");
  Options early;
  early.steps = 500;
  EXPECT_EQ(verdict(find(simulate(early, 1), "adam_update_rms", "run")), "NOT_YET");
  Options sgd;
  sgd.optimizer = "SGD";
  sgd.steps = 100;
  EXPECT_EQ(verdict(find(simulate(sgd, 1), "adam_update_rms", "run")), "NOT_APPLICABLE");
}

CalibrationCase rates(const std::string& setting, Expected expected, Options options) {
  options.steps = options.growth > 1 ? 20000 : 3000;
  CalibrationCase result{"adam_update_rms", setting, expected,
                         [options](uint32_t seed) { return judged(options, seed); }};
  if (expected == Expected::kHolds && options.early == 1)
    result.truth =
        std::sqrt((options.signal_to_noise + kNoiseFloorSq) / (options.signal_to_noise + 1));
  return result;
}

const CalibrationCases kCases({
    rates("independent gradients without a mean", Expected::kHolds, {}),
    rates("independent gradients, mean equal to the deviation", Expected::kHolds, {1}),
    rates("gradients that alternate in sign, mean twice the deviation", Expected::kViolated,
          {4, true}),
    rates("a third of the entries on epsilon's floor", Expected::kSilent,
          {0, false, 1, 1, 100, 1, 3000, 1.0 / 3}),
});

ClosedForm form(double rho) {
  return {"adam_update_rms",
          "RMS of m/sqrt(v), beta1 0.9, mean^2/variance of the gradients " +
              std::to_string(rho).substr(0, 4),
          "sqrt((rho+k)/(rho+1)), k = (1-beta1)/(1+beta1)",
          std::sqrt((rho + kNoiseFloorSq) / (rho + 1)),
          [rho](uint32_t seed) {
            Options options;
            options.signal_to_noise = rho;
            return judged(options, seed);
          },
          0.03};
}

const ClosedForms kForms({form(0), form(0.01), form(0.1), form(1), form(10)});

}  // namespace
}  // namespace tycho::analyzer
