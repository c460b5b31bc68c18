#include "src/statistics/long_run_variance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tycho::analyzer {
namespace {

/// Mean inflation and doubt over series of 60 values of an AR(1).
LongRunVariance average(double correlation) {
  constexpr int kSeries = 200;
  std::mt19937 generator(std::random_device{}());
  std::normal_distribution<double> normal;
  LongRunVariance sum{0, 0, 0};
  for (int series = 0; series < kSeries; ++series) {
    std::vector<double> values;
    double value = normal(generator) / std::sqrt(1 - correlation * correlation);
    for (int i = 0; i < 60; ++i) {
      values.push_back(value);
      value = correlation * value + normal(generator);
    }
    const LongRunVariance result = long_run_variance(values);
    sum.inflation += result.inflation / kSeries;
    sum.degrees_of_freedom += result.degrees_of_freedom / kSeries;
    sum.too_slow += result.too_slow / kSeries;
  }
  return sum;
}

TEST(LongRunVarianceTest, FollowsTheCorrelation) {
  const LongRunVariance white = average(0);
  EXPECT_NEAR(white.inflation, 1.2, 0.3);
  EXPECT_GT(white.degrees_of_freedom, 15);
  EXPECT_LT(white.too_slow, 0.02);
  const LongRunVariance correlated = average(0.5);  // 3 exactly
  EXPECT_NEAR(correlated.inflation, 3, 1);
  EXPECT_LT(correlated.degrees_of_freedom, white.degrees_of_freedom);
  EXPECT_GT(average(0.95).too_slow, 0.3);
}

TEST(LongRunVarianceTest, ConstantAndShortSeries) {
  const LongRunVariance constant = long_run_variance(std::vector<double>(20, 3.0));
  EXPECT_EQ(constant.degrees_of_freedom, 19);
  EXPECT_EQ(constant.too_slow, 0);
  EXPECT_EQ(long_run_variance({1, 2, 3}).too_slow, 1);
  EXPECT_EQ(long_run_variance({}).too_slow, 1);
}

TEST(LongRunVarianceTest, ATrendIsTooSlow) {
  std::vector<double> values;
  for (int i = 0; i < 40; ++i) values.push_back(i);
  EXPECT_GT(long_run_variance(values).too_slow, 0.5);
}

}  // namespace
}  // namespace tycho::analyzer
