// SGD on a noisy quadratic, whose loss over examples is known to depend on eta / B alone while eta
// times the curvature is small, and loss curves made to.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "findings.h"
#include "simulated_sweep.h"

namespace tycho::analyzer {
namespace {

struct Options {
  std::vector<double> batches = {16, 64};
  double rate = 0.0005;  // at the first batch size
  double power = 1;      // of B in eta
  std::string optimizer = "SGD";
  int seeds = 4;
  int examples = 400000;
  bool scale_betas = true;
  double noise_scale = 0;  // recorded; 0: not
  uint32_t seed = 0;
  /// Multiplies the loss of a batch size; nothing: 1.
  std::function<double(double batch)> distort;
};

/// Steps of SGD on 1/2 h x^2 in ten directions with curvatures 1 to 0.05 and gradient noise of
/// variance 4 / B in each: the loss of a step is that of the parameters before it.
RunDigest simulate(double batch, int seed, const Options& options) {
  constexpr int kDirections = 10;
  SweepRun run("b" + std::to_string(static_cast<int>(batch)) + "-s" + std::to_string(seed));
  run->add_parameter(run->add_layer("0"), "weight", {10, 10});
  for (const char* name : {"loss", "batch_size", "grad_noise_trace", "grad_signal_sq"})
    run->statistic(name);
  const double k = batch / options.batches[0];
  v1::ParameterGroup group;
  group.set_learning_rate(options.rate * std::pow(k, options.power));
  if (options.optimizer != "SGD") {
    group.set_beta1(options.scale_betas ? 1 - 0.01 * k : 0.99);
    group.set_beta2(options.scale_betas ? 1 - 0.001 * k : 0.999);
  }
  run.optimize(options.optimizer, group);
  run.open();
  std::seed_seq sequence{options.seed, static_cast<uint32_t>(seed), static_cast<uint32_t>(batch)};
  std::mt19937 generator(sequence);
  std::normal_distribution<double> normal;
  double x[kDirections];
  for (double& value : x) value = 1;
  const double rate = options.rate * k;  // what the quadratic is trained with: the linear rule
  const int steps = static_cast<int>(options.examples / batch);
  for (int step = 0; step < steps; ++step) {
    double loss = 0;
    for (int d = 0; d < kDirections; ++d) {
      const double h = std::pow(0.05, d / 9.0);
      loss += 0.5 * h * x[d] * x[d];
      x[d] -= rate * (h * x[d] + 2 / std::sqrt(batch) * normal(generator));
    }
    run->step(step);
    run->put("batch_size", batch);
    run->put("loss", loss * (options.distort ? options.distort(batch) : 1));
    if (options.noise_scale > 0 && step % 10 == 0) {
      run->put("grad_noise_trace", options.noise_scale);
      run->put("grad_signal_sq", 1.0);
    }
  }
  return run.take();
}

ComparisonFinding judge(const Options& options) {
  std::vector<RunDigest> runs;
  for (const double batch : options.batches) {
    for (int seed = 0; seed < options.seeds; ++seed) {
      runs.push_back(simulate(batch, seed, options));
    }
  }
  return whole(make_batch_transfer()->findings(RunSet(std::move(runs), {})));
}

TEST(BatchTransferTest, TheLinearRuleHoldsForSgdOnAQuadratic) {
  const ComparisonFinding finding = judge({});
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured << " " << finding.gate;
  EXPECT_NE(finding.gate.find("noise scale was not measured"), std::string::npos);
  EXPECT_NE(finding.sweep.find("16 and 64"), std::string::npos) << finding.sweep;
}

TEST(BatchTransferTest, CurvesThatDependOnTheBatchSizeViolateIt) {
  Options options;
  options.distort = [](double batch) { return batch > 16 ? 1.5 : 1.0; };
  const ComparisonFinding finding = judge(options);
  EXPECT_EQ(verdict(finding), "VIOLATED") << finding.measured << " " << finding.gate;
  EXPECT_FALSE(finding.advice.empty());
}

TEST(BatchTransferTest, AStepTooLargeForTheContinuousLimitViolatesIt) {
  Options options;
  options.rate = 0.02;
  options.batches = {16, 1280};  // the learning rate grows to 1.6: eta h = 1.6 at the sharpest
  options.examples = 1600000;
  const ComparisonFinding finding = judge(options);
  EXPECT_EQ(verdict(finding), "VIOLATED") << finding.measured << " " << finding.gate;
}

TEST(BatchTransferTest, AdamFollowsTheSquareRootAndItsBetasAreAskedFor) {
  Options options;
  options.optimizer = "Adam";
  options.power = 0.5;
  ComparisonFinding finding = judge(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.gate;
  EXPECT_NE(finding.gate.find("betas scaled"), std::string::npos) << finding.gate;
  options.scale_betas = false;
  finding = judge(options);
  EXPECT_NE(finding.gate.find("betas were not scaled"), std::string::npos) << finding.gate;
}

TEST(BatchTransferTest, AboveTheNoiseScaleItIsNotApplicable) {
  Options options;
  options.noise_scale = 50;
  const ComparisonFinding finding = judge(options);
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << finding.gate;
  options.noise_scale = 1000;
  EXPECT_EQ(verdict(judge(options)), "HOLDS");
}

// The noise scale grows a thousandfold: that of the end is what the report and its charts say, and
// what is compared with.
TEST(BatchTransferTest, TheNoiseScaleIsThatOfTheReport) {
  SweepRun run("grows");
  for (const char* name : {"batch_size", "grad_noise_trace", "grad_signal_sq"})
    run->statistic(name);
  run.open();
  for (int step = 0; step < 1000; ++step) {
    run->step(step);
    run->put("batch_size", 32);
    run->put("grad_noise_trace", 100.0);
    run->put("grad_signal_sq", step < 500 ? 100.0 : 0.1);
  }
  const RunDigest digest = run.take();
  EXPECT_NEAR(digest.noise_scale.value, 1000, 1);
  EXPECT_LE(digest.noise_scale.low, 1000);
  EXPECT_GE(digest.noise_scale.begin, 500);
}

TEST(BatchTransferTest, SilentWithoutSeedsOrWithoutTheRule) {
  Options options;
  options.seeds = 1;
  EXPECT_EQ(verdict(judge(options)), "UNDERPOWERED");
  options.seeds = 2;
  options.power = 0;  // the learning rate was not scaled
  EXPECT_EQ(verdict(judge(options)), "NOT_APPLICABLE");
  options.power = 1;
  options.optimizer = "LBFGS";
  EXPECT_EQ(verdict(judge(options)), "NOT_APPLICABLE");
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(Options&)>& change) {
  Options options;
  options.examples = 100000;
  change(options);
  CalibrationCase result{"batch_transfer", setting, expected, [options](uint32_t seed) {
                           Options seeded = options;
                           seeded.seed = seed;
                           return judge(seeded);
                         }};
  result.power = 0.5;
  return result;
}

const CalibrationCases kCases({
    rates("noisy quadratic under SGD, batches of 16 and 64, four seeds", Expected::kHolds,
          [](Options&) {}),
    rates("the same with Adam and the square root", Expected::kHolds,
          [](Options& o) {
            o.optimizer = "Adam";
            o.power = 0.5;
          }),
    rates("a loss that is half larger at batch 64", Expected::kViolated,
          [](Options& o) { o.distort = [](double batch) { return batch > 16 ? 1.5 : 1.0; }; }),
    rates("batches above half of the noise scale", Expected::kSilent,
          [](Options& o) { o.noise_scale = 50; }),
    rates("a learning rate that was not scaled", Expected::kSilent,
          [](Options& o) { o.power = 0; }),
    rates("one seed", Expected::kSilent, [](Options& o) { o.seeds = 1; }),
});

}  // namespace
}  // namespace tycho::analyzer
