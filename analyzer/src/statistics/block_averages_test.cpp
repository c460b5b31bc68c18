#include "src/statistics/block_averages.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tycho::analyzer {
namespace {

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

// White noise hides an autoregressive part of a fifth of its variance with a correlation time of
// 100 observations: a few hundred observations cannot show it, and only who knows of it is right.
TEST(BlockAveragesTest, AKnownCorrelationTimeIsAllowedFor) {
  std::mt19937 generator(std::random_device{}());
  std::normal_distribution<double> normal;
  constexpr int kSeries = 400;
  int blind = 0;
  int told = 0;
  for (int series = 0; series < kSeries; ++series) {
    BlockAverages blocks(2);
    double slow = normal(generator);
    for (int i = 0; i < 2000; ++i) {
      blocks.add({3 + normal(generator) + std::sqrt(0.2) * slow, 1});
      slow = 0.98 * slow + std::sqrt(1 - 0.98 * 0.98) * normal(generator);
    }
    const Estimate told_estimate = blocks.ratio({1, 0}, {0, 1}, 0.95, 100);
    const Estimate blind_estimate = blocks.ratio({1, 0}, {0, 1});
    told += told_estimate.low <= 3 && 3 <= told_estimate.high;
    blind += blind_estimate.low <= 3 && 3 <= blind_estimate.high;
  }
  RecordProperty("blind", blind);
  EXPECT_GE(told, 0.92 * kSeries) << "without it " << blind;
  BlockAverages few(2);
  for (int i = 0; i < 256; ++i) few.add({normal(generator), 1});
  EXPECT_TRUE(few.ratio({1, 0}, {0, 1}).bounded());
  EXPECT_FALSE(few.ratio({1, 0}, {0, 1}, 0.95, 40).bounded()) << "six blocks";
}

// |w|^2 of a stationary w moves by increments whose sum stays bounded: their mean is far better
// known than that of independent values, and an interval that does not see it never tells anything.
TEST(BlockAveragesTest, IncrementsOfAStationarySeriesAreKnownBetter) {
  std::mt19937 generator(std::random_device{}());
  std::normal_distribution<double> normal;
  constexpr int kSeries = 300;
  int covered = 0;
  double width = 0;
  for (int series = 0; series < kSeries; ++series) {
    BlockAverages blocks(2);
    double before = normal(generator);
    for (int i = 0; i < 1000; ++i) {
      const double now = 0.5 * before + normal(generator);
      blocks.add({1 + now - before, 1});
      before = now;
    }
    const Estimate estimate = blocks.ratio({1, 0}, {0, 1});
    covered += estimate.low <= 1 && 1 <= estimate.high;
    width += (estimate.high - estimate.low) / kSeries;
  }
  EXPECT_GE(covered, 0.97 * kSeries);
  EXPECT_LT(width, 0.04);  // independent values would give 0.14
}

TEST(BlockAveragesTest, EmptyAndShortSeriesHaveNoInterval) {
  BlockAverages blocks(1);
  EXPECT_TRUE(std::isnan(blocks.mean({1}).value));
  EXPECT_FALSE(blocks.mean({1}).reliable);
  for (int i = 0; i < 7; ++i) blocks.add({1});
  EXPECT_FALSE(blocks.mean({1}).reliable);
  EXPECT_EQ(blocks.mean({1}).value, 1);
}

}  // namespace
}  // namespace tycho::analyzer
