#include "src/schedule/schedule_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {
namespace {

TEST(ScheduleRecordTest, SumsTheRatesOfStepsThatWereNotObserved) {
  ScheduleRecord record;
  // 1 up to step 99, then 0.1.
  for (int step = 9; step < 200; step += 10) record.add(step, step < 100 ? 1 : 0.1, 2);
  const LossCurve curve = record.curve();
  EXPECT_EQ(curve.back().step, 199);
  // The jump is known to lie between step 99 and step 109, and is taken to be at the latter.
  EXPECT_NEAR(curve.back().sum, 110 + 90 * 0.1, 1e-9);
  bool place = false;
  for (const LossCurvePoint& point : curve)
    place = place || (std::isnan(point.loss) && point.step == 109 && point.rate == 0.1);
  EXPECT_TRUE(place);
}

TEST(ScheduleRecordTest, AnEvenlyFallingRateIsSummedByTrapezoids) {
  ScheduleRecord record;
  for (int step = 0; step <= 1000; step += 20) record.add(step, 1 - step / 1000.0, 2);
  EXPECT_NEAR(record.curve().back().sum, 1 + 500, 1e-9);
}

TEST(ScheduleRecordTest, IsBoundedAndKeepsMeans) {
  ScheduleRecord record;
  for (int step = 0; step < 300000; ++step) record.add(step, step % 1000 < 500 ? 1 : 0.1, 2);
  const LossCurve curve = record.curve();
  EXPECT_LT(curve.size(), 500u);
  for (size_t i = 1; i < curve.size(); ++i) {
    EXPECT_LE(curve[i - 1].step, curve[i].step);
    EXPECT_LE(curve[i - 1].sum, curve[i].sum);
    if (std::isnan(curve[i].loss)) continue;
    EXPECT_DOUBLE_EQ(curve[i].loss, 2);
  }
}

TEST(ScheduleRecordTest, ErrorsAreThoseOfTheMeans) {
  std::mt19937 generator(3);
  std::normal_distribution<double> normal;
  double square = 0;
  double count = 0;
  for (int trial = 0; trial < 20; ++trial) {
    ScheduleRecord record;
    for (int step = 0; step < 5000; ++step)
      record.add(step, 1, std::pow(step + 10.0, -0.5) * std::exp(0.1 * normal(generator)));
    for (const LossCurvePoint& point : record.curve()) {
      if (point.step < 1000) continue;
      const double off = std::log(point.loss) + 0.5 * std::log(point.step + 10) - 0.005;
      square += off * off / (point.error * point.error);
      ++count;
    }
  }
  EXPECT_NEAR(square / count, 1, 0.15);
}

TEST(ScheduleRecordTest, ForgetsWhatAResumedRunDoesAnew) {
  ScheduleRecord once;
  ScheduleRecord twice;
  for (int step = 0; step < 2000; ++step) once.add(step, 1, 3);
  for (int step = 0; step < 1500; ++step) twice.add(step, 1, step < 1000 ? 3 : 9);
  for (int step = 1000; step < 2000; ++step) twice.add(step, 1, 3);
  ASSERT_NEAR(twice.curve().size(), once.curve().size(), 1);
  // The bin in which it began anew may be left out.
  for (const LossCurvePoint& point : twice.curve()) EXPECT_NEAR(point.loss, 3, 0.5);
  EXPECT_NEAR(twice.curve().back().sum, once.curve().back().sum, 1e-6 * 2000);
}

TEST(ScheduleRecordTest, CountsWhatHasNoLogarithm) {
  ScheduleRecord record;
  const double infinite = std::numeric_limits<double>::infinity();
  for (const double loss : {1.0, 0.0, -1.0, infinite, kUnknown}) record.add(1, 1, loss);
  record.add(2, kUnknown, 1);
  record.add(3, -1, 1);
  record.add(-5, 1, 1);
  EXPECT_EQ(record.losses(), 3u);
  EXPECT_EQ(record.not_positive(), 4u);
  EXPECT_EQ(record.without_rate(), 2u);
  EXPECT_EQ(record.curve().size(), 1u);
  record.add(std::numeric_limits<int64_t>::max(), 1, 1);
  EXPECT_TRUE(std::isfinite(record.curve().back().sum));
}

}  // namespace
}  // namespace tycho::analyzer
