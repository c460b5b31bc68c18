#include "src/compare/run_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/compare/curves.h"
#include "src/compare/slopes.h"

namespace tycho::analyzer {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

/// A digest as reading would make it, of a network of `depth` blocks.
struct Sample {
  int width = 64;
  int depth = 2;
  double batch_size = 32;
  double rate = 0.1;
  double hidden_rate = 0.1;  // of the second parameter group
  uint64_t seed = 0;
  std::vector<std::string> tags;
  std::vector<std::string> arguments;
  std::string name;
  std::string optimizer = "SGD";

  RunDigest digest() const {
    static int made = 0;
    RunDigest run;
    run.run.set_run_id(std::to_string(made++));
    run.run.set_run_name(name);
    run.run.set_optimizer(optimizer);
    run.run.set_seed(seed);
    run.path = "run" + run.run.run_id();
    run.name = name.empty() ? run.path : name;
    for (const std::string& tag : tags) run.run.add_tags(tag);
    run.run.add_command_line("trainer");
    for (const std::string& argument : arguments) run.run.add_command_line(argument);
    add("embed", width, 10, &run);
    for (int i = 0; i < depth; ++i) {
      add("blocks." + std::to_string(i) + ".up", 4 * width, width, &run);
      add("blocks." + std::to_string(i) + ".down", width, 4 * width, &run);
    }
    add("head", 10, width, &run);
    for (const double learning_rate : {rate, hidden_rate})
      run.optimizer.add_group()->set_learning_rate(learning_rate);
    run.peak_learning_rate = rate;
    run.batch_size = batch_size;
    run.frames = 100;
    run.first_step = 0;
    run.last_step = 99;
    return run;
  }

  static void add(const std::string& path, int64_t rows, int64_t columns, RunDigest* run) {
    v1::Layer* layer = run->model.add_layer();
    layer->set_id(static_cast<uint32_t>(run->model.layer_size()) - 1);
    layer->set_path(path);
    v1::Parameter* parameter = run->model.add_parameter();
    parameter->set_name(path + ".weight");
    parameter->set_layer(layer->id());
    parameter->add_shape(rows);
    parameter->add_shape(columns);
    parameter->set_element_count(static_cast<uint64_t>(rows * columns));
  }
};

std::vector<double> values(const Ladder& ladder) {
  std::vector<double> result;
  for (const Level& level : ladder.levels) result.push_back(level.value);
  return result;
}

TEST(RunSetTest, WidthIsTheExtentThatVariesAndSeedsAreReplicates) {
  std::vector<RunDigest> runs;
  for (const int width : {256, 64, 128}) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      Sample sample;
      sample.width = width;
      sample.seed = seed;
      runs.push_back(sample.digest());
    }
  }
  const RunSet set(std::move(runs), {});
  const auto ladders = set.ladders(Axis::kWidth);
  ASSERT_THAT(ladders, SizeIs(1));
  EXPECT_THAT(values(ladders[0]), ElementsAre(64, 128, 256));
  EXPECT_EQ(ladders[0].runs(), 9u);
  EXPECT_THAT(ladders[0].describe(), HasSubstr("3 runs each"));
  EXPECT_EQ(set.differences()[0].name, "width");
  EXPECT_EQ(set.groups(), 3u);
  EXPECT_THAT(set.ladders(Axis::kDepth), IsEmpty());
  EXPECT_THAT(set.ladders(Axis::kBatchSize), IsEmpty());
  // Sorted by width, and named by it.
  EXPECT_EQ(set.value(Axis::kWidth, 0), 64);
  EXPECT_EQ(set.label(0), "width 64 #1");
  EXPECT_EQ(set.group_label(2), "width 256");
}

TEST(RunSetTest, LearningRatesOfGroupsFollowAParametrizationThatATagNames) {
  std::vector<RunDigest> runs;
  for (const int width : {64, 128, 256}) {
    for (const bool stable : {true, false}) {
      Sample sample;
      sample.width = width;
      sample.tags = {stable ? "mup" : "standard"};
      sample.hidden_rate = stable ? 6.4 / width : 0.1;
      sample.arguments = {"--out", "runs/x" + std::to_string(width) + (stable ? "m" : "s")};
      runs.push_back(sample.digest());
    }
  }
  const auto ladders = RunSet(std::move(runs), {}).ladders(Axis::kWidth);
  ASSERT_THAT(ladders, SizeIs(2));
  for (const Ladder& ladder : ladders) EXPECT_THAT(values(ladder), ElementsAre(64, 128, 256));
  EXPECT_THAT(ladders[0].label + ladders[1].label, HasSubstr("tag mup yes"));
  EXPECT_TRUE((ladders[0].follows.empty()) != (ladders[1].follows.empty()));
}

TEST(RunSetTest, AMixedSweepIsSplitByWhatIsNotTheAxis) {
  std::vector<RunDigest> runs;
  for (const int width : {64, 128, 256}) {
    for (const double rate : {0.1, 0.01}) {
      Sample sample;
      sample.width = width;
      sample.rate = rate;
      sample.arguments = {"--lr=" + std::to_string(rate), "--width", std::to_string(width)};
      runs.push_back(sample.digest());
    }
  }
  const RunSet set(std::move(runs), {});
  EXPECT_THAT(set.ladders(Axis::kWidth), SizeIs(2));
  EXPECT_THAT(set.ladders(Axis::kLearningRate), SizeIs(3));
  EXPECT_THAT(set.ladders(Axis::kLearningRate)[0].follows, IsEmpty());
  // With the learning rate free its name on the command line is too.
  EXPECT_THAT(set.ladders(Axis::kWidth, {"learning rate"}), SizeIs(1));
}

TEST(RunSetTest, DepthIsTheLengthOfTheListThatVaries) {
  std::vector<RunDigest> runs;
  for (const int depth : {2, 4, 8}) {
    Sample sample;
    sample.depth = depth;
    runs.push_back(sample.digest());
  }
  const RunSet set(std::move(runs), {});
  const auto ladders = set.ladders(Axis::kDepth);
  ASSERT_THAT(ladders, SizeIs(1));
  EXPECT_THAT(values(ladders[0]), ElementsAre(2, 4, 8));
  EXPECT_THAT(set.ladders(Axis::kWidth), IsEmpty());
  EXPECT_THAT(set.common_layers({0, 1, 2}), ElementsAre("embed", "blocks.0.up", "blocks.0.down",
                                                        "blocks.1.up", "blocks.1.down", "head"));
}

TEST(RunSetTest, SeedsOnTheCommandLineAndInTagsTellReplicatesApart) {
  std::vector<RunDigest> runs;
  for (const int batch : {16, 64}) {
    for (int seed = 0; seed < 2; ++seed) {
      Sample sample;
      sample.batch_size = batch;
      sample.rate = 0.01 * batch;
      sample.arguments = {"--seed", std::to_string(seed)};
      sample.tags = {"seed=" + std::to_string(seed)};
      sample.name = "b" + std::to_string(batch) + "-s" + std::to_string(seed);
      runs.push_back(sample.digest());
    }
  }
  const auto ladders = RunSet(std::move(runs), {}).ladders(Axis::kBatchSize);
  ASSERT_THAT(ladders, SizeIs(1));
  EXPECT_THAT(ladders[0].levels[0].runs, SizeIs(2));
  EXPECT_THAT(ladders[0].follows, Contains("learning rate"));
}

TEST(RunSetTest, WhatDiffersIsListedAndWhatIsTheSameIsNot) {
  Sample first;
  Sample second;
  second.optimizer = "Adam";
  second.tags = {"dropout=0.1"};
  const RunSet set({first.digest(), second.digest()}, {});
  std::vector<std::string> names;
  for (const Difference& difference : set.differences()) names.push_back(difference.name);
  EXPECT_THAT(names, Contains("optimizer"));
  EXPECT_THAT(names, Contains("tag dropout"));
  EXPECT_THAT(names, Not(Contains("batch size")));
  EXPECT_THAT(names, Not(Contains("width")));
  EXPECT_EQ(set.groups(), 2u);
}

TEST(RunSetTest, TheSameRunAndEmptyOnesAreLeftOut) {
  const RunDigest run = Sample().digest();
  RunDigest empty = Sample().digest();
  empty.frames = 0;
  const RunSet set({run, run, empty}, {{"gone", "no such file"}});
  EXPECT_THAT(set.runs(), SizeIs(1));
  EXPECT_THAT(set.left_out(), SizeIs(3));
  const RunSet none({empty}, {});
  EXPECT_THAT(none.runs(), IsEmpty());
  EXPECT_THAT(none.ladders(Axis::kWidth), IsEmpty());
}

TEST(SlopeTest, APowerIsFoundExactlyAndDegenerateInputIsDefined) {
  std::vector<std::pair<double, double>> points;
  for (const double x : {1.0, 2.0, 5.0, 20.0}) points.emplace_back(x, 3 * std::pow(x, -0.7));
  const Estimate slope = log_log_slope(points);
  EXPECT_TRUE(slope.reliable);
  EXPECT_NEAR(slope.value, -0.7, 1e-12);
  EXPECT_NEAR(slope.low, -0.7, 1e-9);
  EXPECT_FALSE(log_log_slope({}).reliable);
  EXPECT_FALSE(log_log_slope({{1, 2}, {2, 3}}).reliable);
  EXPECT_FALSE(log_log_slope({{1, 2}, {1, 3}, {1, 4}}).reliable);
  EXPECT_FALSE(log_log_slope({{1, 0}, {2, -1}, {3, NAN}, {4, INFINITY}}).reliable);
}

TEST(SlopeTest, ItsIntervalCovers) {
  // Residuals 1, -2, 1 about a line over x = 0, 1, 2: slope 1, standard error sqrt(6/1/2).
  const double e = std::exp(1);
  const Estimate slope =
      log_log_slope({{1, std::exp(1.0)}, {e, std::exp(1.0 - 2)}, {e * e, std::exp(2.0 + 1)}});
  EXPECT_NEAR(slope.value, 1, 1e-12);
  EXPECT_NEAR(slope.standard_error, std::sqrt(3.0), 1e-12);
  EXPECT_NEAR(slope.high - slope.value, 12.706 * std::sqrt(3.0), 0.01);
}

TEST(SlopeTest, AnExponentIsJudgedByItsInterval) {
  const auto judge = [](double value, double half) {
    Estimate estimate;
    estimate.value = value;
    estimate.low = value - half;
    estimate.high = value + half;
    estimate.reliable = true;
    return judge_exponent(estimate, 0.1, 0.25);
  };
  EXPECT_EQ(judge(0.05, 0.1), Verdict::kHolds);
  EXPECT_EQ(judge(0.05, 0.3), Verdict::kUnderpowered);
  EXPECT_EQ(judge(0.3, 0.1), Verdict::kViolated);
  EXPECT_EQ(judge(-0.3, 0.1), Verdict::kViolated);
  EXPECT_EQ(judge(0.15, 0.1), Verdict::kUnderpowered);
  EXPECT_EQ(judge_exponent(Estimate(), 0.1, 0.25), Verdict::kUnderpowered);
}

TEST(SlopeTest, RunsObservedAtOtherStepsAreMatchedBetweenTheirs) {
  std::vector<RunDigest> runs;
  for (const int width : {64, 128, 256}) {
    Sample sample;
    sample.width = width;
    runs.push_back(sample.digest());
  }
  const RunSet set(std::move(runs), {});
  const Ladder ladder = set.ladders(Axis::kWidth).at(0);
  // width^0.5 (step + 1)^0.8, seen at other steps by the run in the middle.
  const auto observe = [&](const std::vector<double>& steps) {
    return [&set, steps](size_t run) {
      const double width = set.value(Axis::kWidth, run);
      Observations series;
      for (const double step : width == 128 ? steps : std::vector<double>{0, 10, 20, 40}) {
        series.emplace_back(step, std::sqrt(width) * std::pow(step + 1, 0.8));
      }
      return series;
    };
  };
  const LadderSlope slope = ladder_slope(set, ladder, observe({7, 15, 30, 60}), 10);
  EXPECT_EQ(slope.steps.size(), 3u);  // not at step 0, before the other's first
  EXPECT_NEAR(slope.slope.value, 0.5, 1e-9);
  EXPECT_NEAR(slope.slope.high, 0.5, 1e-6);
  // Too far apart to know what was between.
  EXPECT_TRUE(ladder_slope(set, ladder, observe({1, 80}), 10).steps.empty());
  EXPECT_EQ(ladder_slope(set, ladder, observe({7, 15, 30, 60}), 2).steps.size(), 2u);
}

RunDigest with_loss(const std::vector<double>& loss, uint64_t bad_from = 1000000) {
  RunDigest run = Sample().digest();
  for (size_t i = 0; i < loss.size(); ++i) {
    RunBin bin;
    bin.bin = i;
    bin.position = {static_cast<double>(i), 32.0 * (static_cast<double>(i) + 1), kUnknown};
    bin.mean = loss[i];
    bin.count = 1;
    if (i >= bad_from) bin.non_finite = 1;
    run.run_series["loss"].push_back(bin);
  }
  return run;
}

TEST(CurveTest, ReachesATargetBetweenBins) {
  const Curve curve = smooth_curve(with_loss({8, 4, 2, 1}), "loss", 0);
  const Position at = curve.first_at_or_below(3);
  EXPECT_NEAR(at.step + 1, std::sqrt(2 * 3.0),
              1e-9);  // halfway between steps 1 and 2 in logarithms
  EXPECT_NEAR(at.examples, 32 * std::sqrt(6.0), 1e-9);
  EXPECT_TRUE(std::isnan(curve.first_at_or_below(0.5).step));
  EXPECT_NEAR(curve.at(2, Alignment::kStep), 2, 1e-12);
  EXPECT_TRUE(std::isnan(curve.at(9, Alignment::kStep)));
  EXPECT_TRUE(std::isnan(curve.at(1, Alignment::kTime)));
}

TEST(CurveTest, EndsWhereTheLossIsNotFinite) {
  const Curve curve = smooth_curve(with_loss({8, 4, 2, 1}, 2), "loss", 0);
  EXPECT_TRUE(curve.diverged);
  EXPECT_EQ(curve.points.size(), 2u);
  EXPECT_TRUE(smooth_curve(with_loss({}), "loss").empty());
  EXPECT_TRUE(std::isnan(common_end({}, Alignment::kStep)));
}

TEST(StepGridTest, EveryStepHasABinAndBinsGrow) {
  EXPECT_EQ(kFineGrid.bin(-5), 0u);
  EXPECT_EQ(kFineGrid.bin(31), 31u);
  EXPECT_EQ(kFineGrid.bin(32), 32u);
  size_t last = 0;
  for (int64_t step = 0; step < 100000; ++step) {
    const size_t bin = kFineGrid.bin(step);
    ASSERT_GE(bin, last);
    ASSERT_LE(bin, last + 1);
    last = bin;
  }
}

}  // namespace
}  // namespace tycho::analyzer
