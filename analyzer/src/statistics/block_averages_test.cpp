#include "src/statistics/block_averages.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tycho::analyzer {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kRepeats = 1000;

struct Coverage {
  double covered = 0;     ///< of the reliable intervals, the share that covers the truth
  double reliable = 0;    ///< share of all runs
  double mean_width = 0;  ///< of the reliable intervals
};

/// AR(1) with unit innovations and mean `mean`, started in its stationary state.
Coverage mean_coverage(double correlation, int length, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const double mean = 3;
  Coverage coverage;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    BlockAverages blocks(1);
    double x = normal(generator) / std::sqrt(1 - correlation * correlation);
    for (int i = 0; i < length; ++i) {
      blocks.add({mean + x});
      x = correlation * x + normal(generator);
    }
    const Estimate estimate = blocks.mean({1});
    if (!estimate.reliable) continue;
    coverage.reliable += 1;
    coverage.mean_width += estimate.high - estimate.low;
    coverage.covered += estimate.low <= mean && mean <= estimate.high;
  }
  coverage.covered /= coverage.reliable;
  coverage.mean_width /= coverage.reliable;
  coverage.reliable /= kRepeats;
  return coverage;
}

struct Case {
  double correlation;
  int length;
};

class CoverageTest : public ::testing::TestWithParam<Case> {};

// 1000 repeats: the standard error of a coverage of 0.95 is 0.007.
TEST_P(CoverageTest, MeanIntervalCoversTheTruth) {
  const auto [correlation, length] = GetParam();
  const Coverage coverage = mean_coverage(correlation, length, 1);
  RecordProperty("covered", std::to_string(coverage.covered));
  EXPECT_GE(coverage.covered, 0.92) << "reliable " << coverage.reliable;
  EXPECT_GE(coverage.reliable, 0.9);
  // The standard error of the mean of an AR(1) series is 1 / ((1 - phi) sqrt(n)).
  const double exact_width = 2 * 1.96 / ((1 - correlation) * std::sqrt(length));
  EXPECT_LT(coverage.mean_width, 1.5 * exact_width);
  EXPECT_GT(coverage.mean_width, 0.8 * exact_width);
}

INSTANTIATE_TEST_SUITE_P(Ar1, CoverageTest,
                         ::testing::Values(Case{-0.5, 500}, Case{0, 40}, Case{0, 1000},
                                           Case{0.5, 500}, Case{0.9, 2000}, Case{0.95, 4000},
                                           Case{0.99, 20000}));

TEST(BlockAveragesTest, SeriesShorterThanItsCorrelationIsSeldomBelieved) {
  const Coverage coverage = mean_coverage(0.999, 1000, 2);
  EXPECT_LT(coverage.reliable, 0.5);
}

TEST(BlockAveragesTest, TrendIsNotBelieved) {
  BlockAverages blocks(1);
  for (int i = 0; i < 10000; ++i) blocks.add({static_cast<double>(i)});
  EXPECT_FALSE(blocks.mean({1}).reliable);
}

TEST(BlockAveragesTest, RatioOfMeansCoversTheTruth) {
  std::mt19937 generator(3);
  std::normal_distribution<double> normal;
  int covered = 0;
  int reliable = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    BlockAverages blocks(2);
    double u = normal(generator);
    double v = normal(generator);
    for (int i = 0; i < 2000; ++i) {
      u = 0.8 * u + 0.6 * normal(generator);
      v = 0.8 * v + 0.6 * normal(generator);
      // The denominator is negative on many single steps: a mean of ratios would be useless.
      blocks.add({5 + u + v, 1 + u});
    }
    const Estimate estimate = blocks.ratio({1, 0}, {0, 1});
    if (!estimate.reliable) continue;
    ++reliable;
    covered += estimate.low <= 5 && 5 <= estimate.high;
  }
  EXPECT_GT(reliable, 0.9 * kRepeats);
  EXPECT_GE(covered, 0.92 * reliable);
}

TEST(BlockAveragesTest, RatioWithUnresolvedDenominatorIsUnbounded) {
  std::mt19937 generator(4);
  std::normal_distribution<double> normal;
  BlockAverages blocks(2);
  for (int i = 0; i < 320; ++i) blocks.add({5 + normal(generator), 1e-3 + normal(generator)});
  EXPECT_FALSE(blocks.ratio({1, 0}, {0, 1}).bounded());
}

TEST(BlockAveragesTest, ChangingCadenceAndGapsKeepTheCoverage) {
  std::mt19937 generator(5);
  std::normal_distribution<double> normal;
  int covered = 0;
  int reliable = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    BlockAverages blocks(1);
    double x = normal(generator);
    for (int i = 0; i < 6000; ++i) {
      x = 0.9 * x + std::sqrt(1 - 0.81) * normal(generator);
      const bool observed = i < 1000 || (i < 3000 ? i % 10 == 0 : i > 4000 && i % 3 == 0);
      if (observed) blocks.add({x});
    }
    const Estimate estimate = blocks.mean({1});
    reliable += estimate.reliable;
    covered += estimate.reliable && estimate.low <= 0 && 0 <= estimate.high;
  }
  EXPECT_GT(reliable, 0.85 * kRepeats);
  EXPECT_GE(covered, 0.91 * reliable);
}

TEST(BlockAveragesTest, ValuesThatAreNotFiniteAreLeftOutAndCounted) {
  BlockAverages blocks(2);
  for (int i = 0; i < 64; ++i) {
    blocks.add({1, 2});
    blocks.add({NAN, 2});
    blocks.add({1, INFINITY});
  }
  EXPECT_EQ(blocks.observations(), 64u);
  EXPECT_EQ(blocks.not_finite(), 128u);
  const Estimate estimate = blocks.ratio({0, 1}, {1, 0});
  EXPECT_DOUBLE_EQ(estimate.value, 2);
  EXPECT_DOUBLE_EQ(estimate.low, 2);
  EXPECT_DOUBLE_EQ(estimate.high, 2);
}

TEST(BlockAveragesTest, EmptyAndShortSeriesHaveNoInterval) {
  BlockAverages blocks(1);
  EXPECT_TRUE(std::isnan(blocks.mean({1}).value));
  EXPECT_FALSE(blocks.mean({1}).reliable);
  for (int i = 0; i < 7; ++i) blocks.add({1});
  EXPECT_FALSE(blocks.mean({1}).reliable);
  EXPECT_EQ(blocks.mean({1}).value, 1);
}

TEST(StudentTTest, AgreesWithClosedForms) {
  // One degree of freedom is Cauchy, two have a closed form.
  EXPECT_NEAR(student_t_quantile(0.95, 1), std::tan(kPi * 0.475), 1e-9);
  const double t = 1.7;
  EXPECT_NEAR(student_t_tail(t, 2), 0.5 - t / (2 * std::sqrt(2 + t * t)), 1e-12);
}

TEST(JudgeTest, FollowsTheVerdictGrammar) {
  Estimate estimate;
  estimate.value = 1;
  estimate.low = 0.98;
  estimate.high = 1.02;
  estimate.standard_error = 0.01;
  estimate.degrees_of_freedom = 30;
  estimate.reliable = true;
  EXPECT_EQ(judge(estimate, 1.01, 0.05), Verdict::kHolds);
  EXPECT_EQ(judge(estimate, 1.5, 0.05), Verdict::kViolated);
  EXPECT_EQ(judge(estimate, 1.06, 0.05), Verdict::kUnderpowered);
  EXPECT_EQ(judge(estimate, kUnknown, 0.05), Verdict::kUnderpowered);
  estimate.reliable = false;
  EXPECT_EQ(judge(estimate, 1.5, 0.05), Verdict::kUnderpowered);
}

TEST(JudgeTest, PValueIsThatOfTheNearerEdge) {
  Estimate estimate;
  estimate.value = 1.2;
  estimate.low = 1.1;
  estimate.high = 1.3;
  estimate.standard_error = 0.05;
  estimate.degrees_of_freedom = 20;
  estimate.reliable = true;
  EXPECT_NEAR(band_p_value(estimate, 0.9, 1.1), student_t_tail(2, 20), 1e-9);
  EXPECT_EQ(band_p_value(estimate, 1, 1.5), 1);
}

}  // namespace
}  // namespace tycho::analyzer
