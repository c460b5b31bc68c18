// Linear regression with a closed form: x ~ N(0, I_d), y = w*.x + e, Var e = s2, loss (w.x - y)^2 /
// 2, delta = w - w* held fixed: G = delta, tr Sigma = d (|delta|^2 + s2) + |delta|^2.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
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
  int copies = 1;       // of each example in a batch
  bool batch_norm = false;
  double signal_falls = 1;   // |G|^2 at the end over its start, exponentially
  int covered = kDimension;  // coordinates whose noise is observed
  double recorded = 0;       // noise scale that the probe recorded, with limits; 0: an older trace
  std::string optimizer = "SGD";
  bool between = false;  // another batch at the same weights, at each step
  double cluster = 0;    // share of the variance that the examples of a batch have in common
  double distinct = 0;   // distinct_examples, at each step; 0: not recorded
  int sorted = 0;        // steps of an epoch of sorted data: a class for each fifth; 0: shuffled
  double noise_variance = kNoiseVariance;
};

/// Gradients of the examples of a batch.
struct Batch {
  std::vector<double> sum = std::vector<double>(kDimension, 0.0);
  double square_sum = 0;  // of single examples, over the coordinates that are observed
};

Batch draw(const Options& options, int step, int size, double delta, std::mt19937* generator) {
  std::normal_distribution<double> normal;
  Batch batch;
  std::vector<double> common(kDimension, 0.0);
  double common_noise = 0;
  if (options.cluster > 0 && options.sorted == 0) {
    for (double& value : common) value = std::sqrt(options.cluster) * normal(*generator);
    common_noise = std::sqrt(options.cluster) * normal(*generator);
  }
  if (options.sorted > 0) {  // a direction of its own for each class
    const int position = step % options.sorted * 5 / options.sorted;
    common[static_cast<size_t>(position) + 1] = std::sqrt(5 * options.cluster);
    common_noise = std::sqrt(options.cluster);  // classes differ from the whole in their answer
  }
  const double own = std::sqrt(1 - options.cluster);
  std::vector<double> x(kDimension);
  double error = 0;
  for (int i = 0; i < size; ++i) {
    if (i % options.copies == 0) {
      for (int j = 0; j < kDimension; ++j) x[j] = common[j] + own * normal(*generator);
      // delta = (1, 0, ...), or shorter
      error = delta * x[0] -
              std::sqrt(options.noise_variance) * (common_noise + own * normal(*generator));
    }
    for (int j = 0; j < kDimension; ++j) {
      batch.sum[j] += error * x[j];
      if (j < options.covered) batch.square_sum += error * error * x[j] * x[j];
    }
  }
  return batch;
}

Finding simulate(const Options& options, uint32_t seed) {
  std::mt19937 generator(seed);
  Engine engine;
  SimulatedRun run(engine);
  run.run().set_optimizer(options.optimizer);
  const uint32_t layer = run.add_layer(
      "0", options.batch_norm ? "torch::nn::BatchNorm1dImpl" : "torch::nn::LinearImpl");
  run.add_parameter(layer, "weight", {1, kDimension});
  for (const char* name :
       {"batch_size", "grad_noise_trace", "grad_signal_sq", "noise_scale", "noise_scale_low",
        "noise_scale_high", "noise_coverage", "covered_noise_trace", "covered_signal_sq",
        "between_batch_trace", "within_batch_trace", "distinct_examples"}) {
    if (options.recorded > 0 || std::string(name).rfind("noise_scale", 0) != 0) run.statistic(name);
  }
  run.open();
  for (int step = 0; step < options.steps; ++step) {
    const int batch = step % 10 == 9 ? options.last_batch : options.batch;
    const double delta =
        std::pow(options.signal_falls, 0.5 * step / static_cast<double>(options.steps - 1));
    const Batch drawn = draw(options, step, batch, delta, &generator);
    const std::vector<double>& sum = drawn.sum;
    double norm_sq = 0;
    double rest_sq = 0;
    for (int j = 0; j < kDimension; ++j)
      (j < options.covered ? norm_sq : rest_sq) += sum[j] * sum[j] / (batch * batch);
    const double mean_sq = drawn.square_sum / batch;
    const double trace = (mean_sq - norm_sq) * batch / (batch - 1.0);
    const double signal = (batch * norm_sq - mean_sq) / (batch - 1.0);
    run.step(step);
    run.put("batch_size", batch);
    if (options.covered < kDimension) {
      run.put("noise_coverage", norm_sq / (norm_sq + rest_sq));
      run.put("covered_noise_trace", trace);
      run.put("covered_signal_sq", signal);
      continue;
    }
    run.put("grad_noise_trace", trace);
    run.put("grad_signal_sq", signal);
    if (options.recorded > 0) {
      run.put("noise_scale", options.recorded);
      run.put("noise_scale_low", 0.5 * options.recorded);
      run.put("noise_scale_high", 2 * options.recorded);
    }
    if (options.between) {
      const Batch other = draw(options, step + 1, options.batch, delta, &generator);
      double distance = 0;
      for (int j = 0; j < kDimension; ++j) {
        const double difference = sum[j] / batch - other.sum[j] / options.batch;
        distance += difference * difference;
      }
      run.put("between_batch_trace", distance / (1.0 / batch + 1.0 / options.batch));
      run.put("within_batch_trace", trace);
    }
    if (options.distinct > 0) run.put("distinct_examples", options.distinct);
    run.put("grad_noise_trace", v1::SCOPE_LAYER, {trace});
    run.put("grad_signal_sq", v1::SCOPE_LAYER, {signal});
  }
  run.finish();
  return find(engine.findings(), "gradient_noise_scale", "run");
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

// The noise within a batch of m-fold examples is (B-m)/(B-1) of what it is taken for: at small
// batches two sizes tell, at large ones nothing does, and the law must not say that it holds.
TEST(GradientNoiseScaleTest, DuplicatedExamplesNeverHold) {
  std::random_device random;
  for (const int copies : {2, 4}) {
    for (const int batch : {16, 64, 256}) {
      for (const int other : {4, 8, 32, 128}) {
        if (other >= batch) continue;
        const bool shows = other == 4 && copies == 4;
        const int seeds = shows ? 20 : 5;
        int holds = 0;
        int violated = 0;
        for (int i = 0; i < seeds; ++i) {
          Options options;
          options.steps = (shows ? 320000 : 80000) / batch;
          options.batch = batch;
          options.last_batch = other;
          options.copies = copies;
          const uint32_t seed = random();
          const Finding finding = simulate(options, seed);
          holds += finding.verdict == Verdict::kHolds;
          violated += finding.verdict == Verdict::kViolated;
          if (finding.verdict == Verdict::kHolds) {
            ADD_FAILURE() << copies << " copies, batches " << batch << " and " << other << ", seed "
                          << seed << ": " << finding.gate;
          }
        }
        EXPECT_EQ(holds, 0);
        if (shows) {
          EXPECT_GE(violated, 16) << batch;
        }
      }
    }
  }
}

// Within a batch nothing shows, between batches everything does, whatever the batch size.
TEST(GradientNoiseScaleTest, TwoBatchesAtTheSameWeightsShowCoupledExamples) {
  std::random_device random;
  constexpr int kSeeds = 10;
  for (const int batch : {8, 16, 64}) {
    for (const int copies : {1, 2, 4}) {
      int holds = 0;
      int violated = 0;
      for (int i = 0; i < kSeeds; ++i) {
        Options options;
        options.steps = 200;
        options.batch = options.last_batch = batch;
        options.copies = copies;
        options.between = true;
        const uint32_t seed = random();
        const Finding finding = simulate(options, seed);
        holds += finding.verdict == Verdict::kHolds;
        violated += finding.verdict == Verdict::kViolated;
        if (finding.verdict == Verdict::kViolated) {
          EXPECT_TRUE(std::isnan(finding.measured)) << "seed " << seed;
          EXPECT_EQ(finding.advice.find("compromise"), std::string::npos) << finding.advice;
        }
      }
      EXPECT_GE(copies == 1 ? holds : violated, 8) << "batch " << batch << ", copies " << copies;
      EXPECT_EQ(copies == 1 ? violated : holds, 0) << "batch " << batch << ", copies " << copies;
    }
  }
}

TEST(GradientNoiseScaleTest, CopiesThatWereCountedAreEnough) {
  std::random_device random;
  Options options;
  options.steps = 60;
  options.batch = options.last_batch = 64;
  options.copies = 4;
  options.distinct = 0.25;
  const Finding copied = simulate(options, random());
  EXPECT_EQ(verdict(copied), "VIOLATED") << copied.gate;
  EXPECT_NE(copied.gate.find("at most 25 %"), std::string::npos) << copied.gate;
  options.copies = 1;
  options.distinct = 1;
  EXPECT_EQ(verdict(simulate(options, random())), "UNDERPOWERED");
}

/// Layers whose noise is lognormal, 1 on average or drifting within epochs of 10 steps, the last of
/// which has another batch size.
std::vector<Finding> healthy_layers(size_t count, double spread, double drift, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  for (size_t i = 0; i < count; ++i)
    run.add_parameter(run.add_layer(std::to_string(i)), "weight", {1, 1});
  for (const char* name : {"batch_size", "grad_noise_trace", "grad_signal_sq"}) run.statistic(name);
  run.open();
  for (int step = 0; step < 2000; ++step) {
    run.step(step);
    run.put("batch_size", step % 10 == 9 ? 4 : 16);
    std::vector<double> trace(count);
    for (double& value : trace)
      value = std::exp(spread * normal(generator)) * std::pow(1 + drift, step / 10.0);
    run.put("grad_noise_trace", v1::SCOPE_LAYER, trace);
    run.put("grad_signal_sq", v1::SCOPE_LAYER, std::vector<double>(count, 0.1));
  }
  run.finish();
  return engine.findings();
}

// Among a hundred layers some deviate by chance: as many as their p-values say, if these are right.
TEST(GradientNoiseScaleTest, AHundredHealthyLayersSeldomCryWolf) {
  constexpr int kSeeds = 20;
  std::random_device random;
  for (const double spread : {0.3, 1.0}) {
    int alarms = 0;
    for (int i = 0; i < kSeeds; ++i) {
      const uint32_t seed = random();
      bool any = false;
      for (const Finding& finding : healthy_layers(100, spread, 0, seed)) {
        any =
            any || (finding.law == "gradient_noise_scale" && finding.verdict == Verdict::kViolated);
      }
      alarms += any;
    }
    EXPECT_LE(alarms, 4) << "spread " << spread;  // 1 expected at 5 %; 5 and more: 1 in 400
  }
}

// tr(Sigma) that moves by 10 % an epoch is no dependence on the batch size.
TEST(GradientNoiseScaleTest, ADriftIsNoDependenceOnTheBatchSize) {
  constexpr int kSeeds = 40;
  std::random_device random;
  int alarms = 0;
  for (int i = 0; i < kSeeds; ++i) {
    const uint32_t seed = random();
    for (const Finding& finding : healthy_layers(1, 0.3, i % 2 == 0 ? 0.1 : -0.1, seed)) {
      if (finding.law != "gradient_noise_scale" || finding.scope == "run") continue;
      alarms += finding.verdict == Verdict::kViolated;
    }
  }
  EXPECT_LE(alarms, 6);  // 2 expected at 5 %
}

TEST(GradientNoiseScaleTest, OneBatchSizeTestsNothing) {
  const Finding finding = simulate({}, 1);
  EXPECT_EQ(verdict(finding), "UNDERPOWERED");
  EXPECT_LT(finding.ci_low, kNoiseScale);
  EXPECT_GT(finding.ci_high, kNoiseScale);
}

TEST(GradientNoiseScaleTest, UnderBatchNormThereIsNoneEver) {
  Options options;
  options.last_batch = 4;
  options.batch_norm = true;
  const Finding finding = simulate(options, 1);
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_TRUE(finding.advice.empty());
  EXPECT_TRUE(std::isnan(finding.measured) && std::isnan(finding.ci_low));
  options.steps = 2;
  EXPECT_EQ(verdict(simulate(options, 1)), "NOT_APPLICABLE") << "no number of steps will do";
}

TEST(GradientNoiseScaleTest, FewStepsAreNotEnough) {
  Options options;
  options.steps = 3;
  EXPECT_EQ(verdict(simulate(options, 1)), "NOT_YET");
}

// |G|^2 falls ten thousandfold, as in a run that converges: said is the noise scale of now, and not
// that of the steps behind, which is far smaller.
TEST(GradientNoiseScaleTest, FollowsASignalThatFades) {
  constexpr double kFall = 1e-4;
  const double expected = kDimension + 1 + kDimension * kNoiseVariance / kFall;  // of the last step
  int covered = 0;
  int honest = 0;
  constexpr int kSeeds = 20;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    Options options;
    options.steps = 1000;
    options.batch = 32;
    options.last_batch = 32;
    options.signal_falls = kFall;
    const Finding finding = simulate(options, seed);
    covered += finding.ci_low <= expected && expected <= finding.ci_high;
    // Hidden in the noise by now: a bound from below, beyond the batch, and no value.
    honest += std::isnan(finding.measured) && finding.ci_low > 100;
  }
  EXPECT_GE(covered, 19);
  EXPECT_GE(honest, 16);
}

TEST(GradientNoiseScaleTest, SaysWhatTheProbeRecorded) {
  Options options;
  options.recorded = 300;
  const Finding finding = simulate(options, 1);
  EXPECT_EQ(finding.measured, 300);
  EXPECT_EQ(finding.ci_low, 150);
  EXPECT_EQ(finding.ci_high, 600);
  EXPECT_NE(finding.advice.find("300 [150, 600]"), std::string::npos) << finding.advice;
  options.recorded = 40;  // a factor of two around it reaches beyond four batches
  EXPECT_EQ(simulate(options, 1).advice, "");
  EXPECT_NE(simulate(options, 1).gate.find("between 20 and 80"), std::string::npos);
}

// What is known of one coordinate of twenty is not sold as the whole: its own noise scale is 6,
// that of all is 101.
TEST(GradientNoiseScaleTest, APartIsGivenAsAPart) {
  constexpr int kSeeds = 20;
  for (const int known : {1, 10, 19}) {
    SCOPED_TRACE(known);
    int covered = 0;
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
      Options options;
      options.covered = known;
      options.steps = 2000;
      const Finding finding = simulate(options, seed);
      EXPECT_EQ(verdict(finding), "UNDERPOWERED");
      EXPECT_TRUE(std::isnan(finding.measured));
      covered += finding.ci_low <= kNoiseScale && kNoiseScale <= finding.ci_high;
      EXPECT_NE(finding.gate.find("for only a part of the parameters, which has"),
                std::string::npos)
          << finding.gate;
      EXPECT_EQ(finding.advice.find("a step makes"), std::string::npos) << finding.advice;
    }
    EXPECT_GE(covered, 19);
  }
}

// Bounds are enough where nearly all is known, or where the batch is far off.
TEST(GradientNoiseScaleTest, APartThatIsNearlyAllStillAdvises) {
  Options options;
  options.covered = 19;
  options.steps = 3000;
  options.batch = options.last_batch = 4;
  Finding finding = simulate(options, 1);
  EXPECT_GT(finding.ci_low, 16) << finding.gate;
  EXPECT_NE(finding.advice.find("below the noise scale, which is at least"), std::string::npos)
      << finding.advice;
  options.batch = options.last_batch = 2048;
  options.steps = 200;
  finding = simulate(options, 1);
  EXPECT_LT(finding.ci_high, 512) << finding.gate;
  EXPECT_NE(finding.advice.find("above the noise scale, which is at most"), std::string::npos)
      << finding.advice;
}

TEST(GradientNoiseScaleTest, AWideIntervalIsNoCompromise) {
  Options options;
  options.recorded = 16;  // the batch, within [8, 32]
  EXPECT_NE(simulate(options, 1).advice.find("compromise"), std::string::npos);
  for (uint32_t seed = 0; seed < 10; ++seed) {
    Options few;
    few.steps = 60;
    few.batch = 32;
    few.last_batch = 32;
    few.signal_falls = 0.05;
    const Finding finding = simulate(few, seed);
    if (finding.ci_low >= 8 && finding.ci_high <= 128) continue;
    EXPECT_EQ(finding.advice.find("compromise"), std::string::npos) << finding.advice;
  }
}

CalibrationCase rates(const std::string& setting, Expected expected, const Options& options) {
  CalibrationCase result{"gradient_noise_scale", setting, expected,
                         [options](uint32_t seed) { return simulate(options, seed); }};
  if (options.copies == 1 && options.cluster == 0) result.truth = kNoiseScale;
  result.power = 0.5;
  return result;
}

Options with_other_batches(int batch, int copies, double cluster) {
  Options options;
  options.steps = 300;
  options.batch = options.last_batch = batch;
  options.copies = copies;
  options.cluster = cluster;
  options.between = true;
  return options;
}

Options sorted_data(int batches) {
  Options options = with_other_batches(64, 1, 0.3);
  options.sorted = batches;
  options.steps = std::max(300, 2 * batches);
  return options;
}

ClosedForm form(double noise_variance) {
  return {"gradient_noise_scale",
          fmt::format("linear regression, d = 20, x ~ N(0, I), |w - w*| = 1, noise of variance {}",
                      noise_variance),
          "d + 1 + d s^2/|w - w*|^2",
          kDimension * (1 + noise_variance) + 1,
          [noise_variance](uint32_t seed) {
            Options options;
            options.steps = 4000;
            options.batch = options.last_batch = 64;
            options.noise_variance = noise_variance;
            return simulate(options, seed);
          },
          0.2};
}

const ClosedForms kForms({form(0), form(1), form(4)});

const CalibrationCases kCases({
    rates("linear regression, batches of 8 and 4", Expected::kHolds, {8000, 8, 4}),
    rates("one batch size", Expected::kSilent, {1000}),
    rates("each example 4 times, batches of 16 and 4", Expected::kViolated, {8000, 16, 4, 4}),
    rates("each example twice, batches of 64 and 32", Expected::kSilent, {1000, 64, 32, 2}),
    rates("two batches at the same weights", Expected::kHolds, with_other_batches(64, 1, 0)),
    rates("the same, each example twice", Expected::kViolated, with_other_batches(64, 2, 0)),
    rates("the same, examples of a batch in a cluster", Expected::kViolated,
          with_other_batches(64, 1, 0.2)),
    rates("the same, data sorted by class, 10 batches an epoch", Expected::kViolated,
          sorted_data(10)),
    rates("the same, 400 batches an epoch", Expected::kUnseen, sorted_data(400)),
    rates("a quarter of the examples of a batch distinct, counted", Expected::kViolated,
          [] {
            Options options;
            options.steps = 60;
            options.batch = options.last_batch = 64;
            options.copies = 4;
            options.distinct = 0.25;
            return options;
          }()),
    rates("BatchNorm", Expected::kSilent,
          [] {
            Options options;
            options.steps = 300;
            options.last_batch = 4;
            options.batch_norm = true;
            return options;
          }()),
});

}  // namespace
}  // namespace tycho::analyzer
