#include "src/statistics/long_run_variance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

struct Average {
  double half_width = 0;  ///< of the 95 % interval over that of a known variance of white noise
  double too_slow = 0;
};

/// Over series of 60 values of an AR(1).
Average average(double correlation) {
  constexpr int kSeries = 200;
  std::mt19937 generator(std::random_device{}());
  std::normal_distribution<double> normal;
  Average sum;
  for (int series = 0; series < kSeries; ++series) {
    std::vector<double> values;
    double value = normal(generator) / std::sqrt(1 - correlation * correlation);
    for (int i = 0; i < 60; ++i) {
      values.push_back(value);
      value = correlation * value + normal(generator);
    }
    const LongRunVariance result = long_run_variance(values);
    sum.half_width += std::sqrt(result.inflation) *
                      student_t_quantile(0.95, result.degrees_of_freedom) / 1.96 / kSeries;
    sum.too_slow += result.too_slow / kSeries;
  }
  return sum;
}

TEST(LongRunVarianceTest, FollowsTheCorrelation) {
  const Average white = average(0);
  EXPECT_GT(white.half_width, 1.05);
  EXPECT_LT(white.half_width, 1.4);
  EXPECT_LT(white.too_slow, 0.03);
  const Average correlated = average(0.5);  // sqrt(3) exactly
  EXPECT_GT(correlated.half_width, std::sqrt(3.0));
  EXPECT_LT(correlated.half_width, 2 * std::sqrt(3.0));
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
