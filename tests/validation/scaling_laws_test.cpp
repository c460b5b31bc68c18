// Depth scaling and sharpness over width, on statistics that scale as they are told to.
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
  std::vector<int> values;
  int seeds = 3;
  double output_power = 0;  // of the change of the output
  double block_power = 0;   // of the change of each block
  double sharpness_power = 0;
  double scatter = 0.02;
  bool with_output = true;
  uint32_t seed = 0;
};

RunDigest deep(int depth, int seed, const Options& options) {
  SweepRun run("d" + std::to_string(depth) + "-s" + std::to_string(seed));
  run->add_parameter(run->add_layer("embed"), "weight", {64, 32});
  for (int l = 0; l < depth; ++l) {
    run->add_parameter(run->add_layer("blocks." + std::to_string(l) + ".fc"), "weight", {64, 64});
  }
  run->add_parameter(run->add_layer("head"), "weight", {10, 64});
  for (const char* name : {"output_change", "feature_change", "effective_update"})
    run->statistic(name);
  run.optimize("Adam", 0.01);
  run.open();
  std::seed_seq sequence{options.seed, static_cast<uint32_t>(depth), static_cast<uint32_t>(seed)};
  std::mt19937 generator(sequence);
  std::normal_distribution<double> normal;
  const double of_seed = std::exp(options.scatter * normal(generator));
  const double output = 0.1 * std::pow(depth, options.output_power) * of_seed;
  const double block = 0.1 * std::pow(depth, options.block_power) * of_seed;
  for (int step = 0; step < 8; ++step) {
    run->step(step);
    std::vector<double> change(static_cast<size_t>(depth) + 2, block * (step + 1));
    change.front() = 0.1 * of_seed;
    change.back() = output * (step + 1);
    run->put("feature_change", v1::SCOPE_LAYER, change);
    run->put("effective_update", v1::SCOPE_LAYER, change);
    if (options.with_output) run->put("output_change", output * (step + 1));
  }
  return run.take();
}

RunDigest sharp(int width, int seed, const Options& options) {
  SweepRun run("w" + std::to_string(width) + "-s" + std::to_string(seed));
  run->add_parameter(run->add_layer("0"), "weight", {width, width});
  for (const char* name : {"preconditioned_sharpness", "stability_threshold"}) run->statistic(name);
  run.optimize("SGD", 0.1);
  run.open();
  std::seed_seq sequence{options.seed, static_cast<uint32_t>(width), static_cast<uint32_t>(seed)};
  std::mt19937 generator(sequence);
  std::normal_distribution<double> normal;
  const double of_seed = std::exp(options.scatter * normal(generator));
  for (int step = 0; step < 500; step += 20) {
    run->step(step);
    run->put("preconditioned_sharpness",
             5 * std::log(2.0 + step) * of_seed * std::pow(width / 64.0, options.sharpness_power));
    run->put("stability_threshold", 20.0);
  }
  return run.take();
}

template <typename Make>
std::vector<ComparisonFinding> judge(const Options& options, const ComparisonLaw& law, Make make) {
  std::vector<RunDigest> runs;
  for (const int value : options.values) {
    for (int seed = 0; seed < options.seeds; ++seed) runs.push_back(make(value, seed, options));
  }
  return law.findings(RunSet(std::move(runs), {}));
}

TEST(DepthScalingTest, AnOutputThatDoesNotDependOnDepthHolds) {
  Options options;
  options.values = {2, 4, 8, 16};
  options.block_power = -0.5;
  const ComparisonFinding finding = whole(judge(options, *make_depth_scaling(), deep));
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured << " " << finding.gate;
  // The blocks' exponent is fitted, and with it the multiplier that would make their sum constant.
  EXPECT_NE(finding.gate.find("a fit"), std::string::npos) << finding.gate;
  EXPECT_NE(finding.gate.find("depth^-0.50"), std::string::npos) << finding.gate;
}

TEST(DepthScalingTest, AnOutputThatGrowsWithDepthIsViolated) {
  Options options;
  options.values = {2, 4, 8, 16};
  options.output_power = 1;
  const auto findings = judge(options, *make_depth_scaling(), deep);
  EXPECT_EQ(verdict(whole(findings)), "VIOLATED");
  EXPECT_NEAR(whole(findings).measured, 1, 0.05);
  EXPECT_EQ(verdict(part(findings, "feature_change", "layer:head")), "VIOLATED");
  EXPECT_EQ(verdict(part(findings, "feature_change", "layer:embed")), "HOLDS");
}

TEST(DepthScalingTest, WithoutTheOutputALayerOutsideOfTheStackStandsForIt) {
  Options options;
  options.values = {2, 4, 8, 16};
  options.output_power = 1;
  options.with_output = false;
  const ComparisonFinding finding = whole(judge(options, *make_depth_scaling(), deep));
  EXPECT_EQ(verdict(finding), "VIOLATED");
  EXPECT_NE(finding.gate.find("layer:head"), std::string::npos) << finding.gate;
}

TEST(DepthScalingTest, SilentWithTwoDepthsAndUnsureWithScatter) {
  Options options;
  options.values = {2, 4};
  EXPECT_EQ(verdict(whole(judge(options, *make_depth_scaling(), deep))), "NOT_APPLICABLE");
  options.values = {2, 4, 8};
  options.seeds = 1;
  options.scatter = 0.5;
  EXPECT_EQ(verdict(whole(judge(options, *make_depth_scaling(), deep))), "UNDERPOWERED");
}

TEST(SharpnessWidthTest, CurvesThatCoincideHold) {
  Options options;
  options.values = {64, 128, 256};
  const ComparisonFinding finding = whole(judge(options, *make_sharpness_width(), sharp));
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured;
}

TEST(SharpnessWidthTest, CurvesThatDoNotAreViolatedWithTheirExponent) {
  Options options;
  options.values = {64, 128, 256};
  options.sharpness_power = 0.5;
  const ComparisonFinding finding = whole(judge(options, *make_sharpness_width(), sharp));
  EXPECT_EQ(verdict(finding), "VIOLATED");
  EXPECT_NEAR(finding.measured, 0.5, 0.05);
  EXPECT_NE(finding.advice.find("width^"), std::string::npos);
}

TEST(SharpnessWidthTest, SilentWhereItWasNotMeasured) {
  Options options;
  options.values = {2, 4, 8};
  EXPECT_EQ(verdict(whole(judge(options, *make_sharpness_width(), deep))), "NOT_APPLICABLE");
}

TEST(LadderSlopeTest, FalseAlarmsAreRare) {
  Options options;
  options.values = {64, 128, 256, 512};
  options.scatter = 0.1;
  int violated = 0;
  constexpr int kTrials = 60;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<RunDigest> runs;
    for (const int width : options.values) {
      for (int seed = 0; seed < 2; ++seed) {
        runs.push_back(sharp(width, 1000 * trial + seed, options));
      }
    }
    for (size_t r = 0; r < runs.size(); ++r) runs[r].run.set_run_id(std::to_string(r));
    violated +=
        verdict(whole(make_sharpness_width()->findings(RunSet(std::move(runs), {})))) == "VIOLATED";
  }
  EXPECT_LE(violated, 3);  // 5 %
}

ComparisonFinding judge_depths(const Options& options) {
  return whole(judge(options, *make_depth_scaling(), deep));
}
ComparisonFinding judge_widths(const Options& options) {
  return whole(judge(options, *make_sharpness_width(), sharp));
}

template <typename Judge>
CalibrationCase rates(const std::string& law, const std::string& setting, Expected expected,
                      Judge judge, const std::function<void(Options&)>& change) {
  Options options;
  options.values =
      law == "depth_scaling" ? std::vector<int>{2, 4, 8, 16} : std::vector<int>{64, 128, 256, 512};
  options.scatter = 0.1;
  change(options);
  CalibrationCase result{law, setting, expected, [judge, options](uint32_t seed) -> Finding {
                           Options seeded = options;
                           seeded.seed = seed;
                           return judge(seeded);
                         }};
  if (expected == Expected::kHolds) result.truth = 0;
  if (expected == Expected::kViolated)
    result.truth = law == "depth_scaling" ? options.output_power : options.sharpness_power;
  return result;
}

const CalibrationCases kCases({
    rates("depth_scaling", "an output that does not depend on depth, three seeds", Expected::kHolds,
          judge_depths, [](Options& o) { o.block_power = -0.5; }),
    rates("depth_scaling", "an output that grows with the square root of depth",
          Expected::kViolated, judge_depths, [](Options& o) { o.output_power = 0.5; }),
    rates("depth_scaling", "two depths", Expected::kSilent, judge_depths,
          [](Options& o) {
            o.values = {2, 4};
          }),
    rates("sharpness_width", "sharpness that does not depend on width, three seeds",
          Expected::kHolds, judge_widths, [](Options&) {}),
    rates("sharpness_width", "sharpness that grows with the square root of width",
          Expected::kViolated, judge_widths, [](Options& o) { o.sharpness_power = 0.5; }),
    rates("sharpness_width", "two widths", Expected::kSilent, judge_widths,
          [](Options& o) {
            o.values = {64, 128};
          }),
});

}  // namespace
}  // namespace tycho::analyzer
