// Linear regression with a closed form: x ~ N(0, I_d), y = w*.x + e, Var e = s2, loss (w.x - y)^2 /
// 2, delta = w - w* held fixed: G = delta, tr Sigma = d (|delta|^2 + s2) + |delta|^2.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

constexpr int kDimension = 20;
constexpr double kNoiseVariance = 4;                                   // |delta| = 1
constexpr double kNoiseScale = kDimension * (1 + kNoiseVariance) + 1;  // |G|^2 = 1

struct Options {
  int steps = 3000;
  int batch = 16;
  int last_batch = 16;  // every tenth step
  bool duplicated = false;
  bool batch_norm = false;
  std::string optimizer = "SGD";
};

Finding simulate(const Options& options, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  run.run().set_optimizer(options.optimizer);
  const uint32_t layer = run.add_layer(
      "0", options.batch_norm ? "torch::nn::BatchNorm1dImpl" : "torch::nn::LinearImpl");
  run.add_parameter(layer, "weight", {1, kDimension});
  for (const char* name : {"batch_size", "grad_noise_trace", "grad_signal_sq"}) run.statistic(name);
  run.open();
  for (int step = 0; step < options.steps; ++step) {
    const int batch = step % 10 == 9 ? options.last_batch : options.batch;
    std::vector<double> sum(kDimension, 0.0);
    double square_sum = 0;
    std::vector<double> x(kDimension);
    double error = 0;
    for (int i = 0; i < batch; ++i) {
      if (!options.duplicated || i % 2 == 0) {
        for (double& value : x) value = normal(generator);
        error = x[0] - std::sqrt(kNoiseVariance) * normal(generator);  // delta = (1, 0, ...)
      }
      for (int j = 0; j < kDimension; ++j) {
        sum[j] += error * x[j];
        square_sum += error * error * x[j] * x[j];
      }
    }
    double norm_sq = 0;
    for (const double s : sum) norm_sq += s * s / (batch * batch);
    const double mean_sq = square_sum / batch;
    const double trace = (mean_sq - norm_sq) * batch / (batch - 1.0);
    const double signal = (batch * norm_sq - mean_sq) / (batch - 1.0);
    run.step(step);
    run.put("batch_size", batch);
    run.put("grad_noise_trace", trace);
    run.put("grad_signal_sq", signal);
    run.put("grad_noise_trace", v1::SCOPE_LAYER, {trace});
    run.put("grad_signal_sq", v1::SCOPE_LAYER, {signal});
  }
  run.finish();
  return find(engine.findings(), "gradient_noise_scale", "run");
}

TEST(GradientNoiseScaleTest, AgreesWithTheClosedFormAndSeldomCriesWolf) {
  Options options;
  options.steps = 15000;
  options.batch = 8;
  options.last_batch = 4;
  constexpr int kSeeds = 40;
  int covered = 0;
  int violated = 0;
  int holds = 0;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    const Finding finding = simulate(options, seed);
    violated += finding.verdict == Verdict::kViolated;
    holds += finding.verdict == Verdict::kHolds;
    covered += finding.ci_low <= kNoiseScale && kNoiseScale <= finding.ci_high;
  }
  EXPECT_GE(covered, 35);  // 38 expected at 95 %
  EXPECT_LE(violated, 1);
  EXPECT_GE(holds, 20);
}

TEST(GradientNoiseScaleTest, AdviceNamesBatchScaleAndCaveat) {
  Options options;
  options.steps = 20000;
  options.batch = 4;
  options.last_batch = 4;
  options.optimizer = "AdamW";
  const Finding finding = simulate(options, 1);
  EXPECT_NE(finding.advice.find("below the noise scale"), std::string::npos) << finding.advice;
  EXPECT_NE(finding.advice.find("Merrill"), std::string::npos) << finding.advice;
  EXPECT_GE(finding.importance, 0.5);
}

TEST(GradientNoiseScaleTest, LargeBatchIsCalledLarge) {
  Options options;
  options.batch = 1024;
  options.last_batch = 1024;
  options.steps = 300;
  const Finding finding = simulate(options, 1);
  EXPECT_NE(finding.advice.find("above the noise scale"), std::string::npos) << finding.advice;
}

TEST(GradientNoiseScaleTest, DuplicatedExamplesViolateTheLaw) {
  Options options;
  options.steps = 20000;
  options.last_batch = 4;
  options.duplicated = true;
  const Finding finding = simulate(options, 1);
  EXPECT_EQ(verdict(finding), "VIOLATED") << finding.gate;
}

TEST(GradientNoiseScaleTest, OneBatchSizeTestsNothing) {
  const Finding finding = simulate({}, 1);
  EXPECT_EQ(verdict(finding), "UNDERPOWERED");
  EXPECT_LT(finding.ci_low, kNoiseScale);
  EXPECT_GT(finding.ci_high, kNoiseScale);
}

TEST(GradientNoiseScaleTest, BatchNormIsNotApplicable) {
  Options options;
  options.last_batch = 4;
  options.batch_norm = true;
  const Finding finding = simulate(options, 1);
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_TRUE(finding.advice.empty());
}

TEST(GradientNoiseScaleTest, FewStepsAreNotEnough) {
  Options options;
  options.steps = 10;
  EXPECT_EQ(verdict(simulate(options, 1)), "NOT_YET");
}

}  // namespace
}  // namespace tycho::analyzer
