// Linear regression on x ~ N(0, I_d): gradients, Hessians of batches and the learning rate at which
// SGD loses mean-square stability are exact.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

struct Options {
  int dimension = 30;
  int batch = 4;
  double of_threshold = 0.97;  // learning rate over the exact mean-square threshold
  double momentum = 0;
  double factor = 1;  // on what is recorded
  std::string optimizer = "SGD";
  bool noise = true;  // gradient noise recorded
  bool full_batch = false;
  int observations = 100;
  uint32_t seed = 5;
};

struct Outcome {
  Finding finding;
  double mean = 0;    // of the batch sharpness
  double pooled = 0;  // ratio of means over all batches
};

Outcome simulate(const Options& options) {
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  const int d = options.dimension;
  const double eta = options.of_threshold * 2 / (1 + (d + 1.0) / options.batch);
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {1, d});
  for (const char* name : {"batch_sharpness", "batch_sharpness_pooled", "batch_size", "loss",
                           "probe_loss", "grad_noise_trace", "grad_signal_sq"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(eta);
  group.set_momentum(options.momentum);
  run.settings(0, options.optimizer, group);
  constexpr int kBatches = 64;
  Outcome outcome;
  double all_above = 0;
  double all_below = 0;
  Eigen::VectorXd delta = Eigen::VectorXd::Unit(d, 0);
  for (int step = 0; step < options.observations; ++step) {
    double ratios = 0;
    double above = 0;
    double below = 0;
    for (int k = 0; k < kBatches; ++k) {
      Eigen::MatrixXd x(options.batch, d);
      for (int i = 0; i < x.size(); ++i) x.data()[i] = normal(generator);
      const Eigen::VectorXd g = x.transpose() * (x * delta) / options.batch;
      const double curvature = (x * g).squaredNorm() / options.batch;
      ratios += curvature / g.squaredNorm() / kBatches;
      above += curvature;
      below += g.squaredNorm();
    }
    outcome.mean += ratios / options.observations;
    all_above += above;
    all_below += below;
    run.step(step);
    run.put("batch_sharpness", options.factor * ratios);
    run.put("batch_sharpness_pooled", options.factor * above / below);
    run.put("batch_size", options.batch);
    run.put("loss", 1 + 0.1 * normal(generator));
    if (options.full_batch) {
      run.put("loss", 1);
      run.put("probe_loss", 1);
    }
    if (options.noise) {
      run.put("grad_noise_trace", d + 1);
      run.put("grad_signal_sq", 1 + 0.01 * normal(generator));
    }
  }
  outcome.pooled = all_above / all_below;
  run.finish();
  outcome.finding = find(engine.findings(), "batch_sharpness", "run");
  return outcome;
}

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " [" + std::to_string(f.ci_low) + ", " +
         std::to_string(f.ci_high) + "] " + f.gate + " / " + f.advice;
}

TEST(BatchSharpnessTest, HoldsNearTheExactThresholdAndSaysContested) {
  for (const int batch : {1, 4}) {
    Options options;
    options.batch = batch;
    const Outcome outcome = simulate(options);
    // B = 1: |x|^2, whose mean is d. Pooled with the moments of the Wishart
    // matrix S: E S^2 = 1 + (d+1)/B, E S^3 = 1 + 3 (d+1)/B + (d^2+3d+4)/B^2.
    const double d = options.dimension;
    if (batch == 1) {
      EXPECT_NEAR(outcome.mean, d, 0.5);
    }
    const double third = 1 + 3 * (d + 1) / batch + (d * d + 3 * d + 4) / batch / batch;
    EXPECT_NEAR(outcome.pooled / (third / (1 + (d + 1) / batch)), 1, 0.04);
    EXPECT_EQ(verdict(outcome.finding), "HOLDS") << told(outcome.finding);
    EXPECT_EQ(outcome.finding.advice.rfind("CONTESTED", 0), 0u) << told(outcome.finding);
  }
}

TEST(BatchSharpnessTest, BelowThePlateauIsNoViolation) {
  Options options;
  options.of_threshold = 0.5;
  EXPECT_EQ(verdict(simulate(options).finding), "NOT_YET");
}

TEST(BatchSharpnessTest, FarAboveWithACalmLossViolates) {
  Options options;
  options.factor = 1.6;
  const Finding finding = simulate(options).finding;
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
  EXPECT_LE(finding.importance, 0.5);
}

TEST(BatchSharpnessTest, MomentumMovesThePlateauOfSmallBatches) {
  Options options;
  options.momentum = 0.9;
  EXPECT_EQ(verdict(simulate(options).finding), "VIOLATED");
  options.factor = 0.1;
  EXPECT_EQ(verdict(simulate(options).finding), "HOLDS") << told(simulate(options).finding);
  options.noise = false;
  EXPECT_EQ(verdict(simulate(options).finding), "NOT_MEASURED");
}

TEST(BatchSharpnessTest, StaysSilentWithoutItsGate) {
  Options adam;
  adam.optimizer = "Adam";
  EXPECT_EQ(verdict(simulate(adam).finding), "NOT_APPLICABLE");
  Options full;
  full.full_batch = true;
  EXPECT_EQ(verdict(simulate(full).finding), "NOT_APPLICABLE") << told(simulate(full).finding);
  Options few;
  few.observations = 10;
  EXPECT_EQ(verdict(simulate(few).finding), "NOT_YET");
}

CalibrationCase rates(const std::string& setting, Expected expected, const Options& options) {
  return {"batch_sharpness", setting, expected, [options](uint32_t seed) {
            Options seeded = options;
            seeded.seed = seed;
            return simulate(seeded).finding;
          }};
}

const CalibrationCases kCases({
    rates("linear regression at 0.97 of the mean-square threshold, batch 4", Expected::kHolds, {}),
    rates("the same at batch 1", Expected::kHolds, {30, 1}),
    rates("1.6 times that is recorded", Expected::kViolated, {30, 4, 0.97, 0, 1.6}),
    rates("at half the threshold", Expected::kSilent, {30, 4, 0.5}),
});

const ClosedForms kForms({
    {"batch_sharpness", "E[g'H_B g/|g|^2] of linear regression at batch 1, d = 30", "E|x|^2 = d",
     30,
     [](uint32_t seed) {
       Options options;
       options.batch = 1;
       options.seed = seed;
       Finding finding = simulate(options).finding;
       // It is given over the plateau 2/eta.
       const double plateau = (1 + (options.dimension + 1.0)) / options.of_threshold;
       for (double* value : {&finding.measured, &finding.ci_low, &finding.ci_high})
         *value *= plateau;
       return finding;
     },
     0.03},
});

}  // namespace
}  // namespace tycho::analyzer
