#include "src/statistics/estimate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "src/statistics/block_averages.h"

namespace tycho::analyzer {
namespace {

constexpr double kPi = 3.14159265358979323846;

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
  EXPECT_NEAR(band_p_value(estimate, 0.9, 1.1), student_t_tail(2, 20) + student_t_tail(6, 20),
              1e-9);
  EXPECT_EQ(band_p_value(estimate, 1, 1.5), 1);
}

TEST(StudentTTest, FastTailAndFreedomAgreeWithTheExactOnes) {
  for (const double freedom : {7.0, 15.0, 31.0, 63.0}) {
    for (const double t : {0.0, 0.5, 1.0, 2.0, 3.0, 4.0}) {
      const double exact = student_t_tail(t, freedom);
      if (exact < 1e-4) continue;
      EXPECT_NEAR(fast_student_t_tail(t, freedom) / exact, 1, 0.03) << freedom << " " << t;
    }
  }
  for (const double freedom : {0.7, 2.0, 5.0, 30.0, 500.0}) {
    const double ratio = student_t_quantile(0.999, freedom) / student_t_quantile(0.95, freedom);
    EXPECT_NEAR(freedom_of_quantile_ratio(ratio) / freedom, 1, 0.01);
  }
  EXPECT_EQ(freedom_of_quantile_ratio(1e9), 0.5);
  EXPECT_NEAR(freedom_of_quantile_ratio(1), 1000, 1e-6);
}

TEST(EstimateTest, SkewedIsTheInverseOfUnskewed) {
  for (const double skewness : {-0.8, -0.1, 0.0, 0.3, 1.0}) {
    for (const double t : {-2.5, -1.0, 0.0, 1.0, 3.0})
      EXPECT_NEAR(unskewed(skewed(t, skewness), skewness), t, 1e-9);
  }
}

// A truth at a limit of the 95 % interval has a p-value of 0.025, whatever the skewness and the
// noise of the denominator.
TEST(EstimateTest, PValueAndIntervalAreOneDistribution) {
  std::mt19937 generator(std::random_device{}());
  std::normal_distribution<double> normal;
  for (int repeat = 0; repeat < 50; ++repeat) {
    BlockAverages blocks(2);
    for (int i = 0; i < 300; ++i)
      blocks.add({std::exp(normal(generator)),
                  (repeat % 2 == 0 ? 1 : -1) * std::exp(0.5 * normal(generator))});
    const Estimate estimate = blocks.ratio({1, 0}, {0, 1});
    ASSERT_TRUE(estimate.bounded());
    EXPECT_NEAR(estimate.p_value(estimate.low), 0.025, 1e-6);
    EXPECT_NEAR(estimate.p_value(estimate.high), 0.025, 1e-6);
  }
}

}  // namespace
}  // namespace tycho::analyzer
