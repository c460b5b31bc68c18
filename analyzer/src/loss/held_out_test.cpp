#include "src/loss/held_out.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "src/loss/held_out_alarms.h"

namespace tycho::analyzer {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kSeeds = 400;

/// Noise with the variance 1 and this correlation from one value to the next.
class Noise {
 public:
  Noise(int seed, double correlation)
      : random_(static_cast<uint64_t>(seed) * 7919 + 3), memory_(correlation) {
    value_ = normal_(random_);
  }
  double next() {
    const double now = value_;
    value_ = memory_ * value_ + std::sqrt(1 - memory_ * memory_) * normal_(random_);
    return now;
  }

 private:
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
  double memory_;
  double value_ = 0;
};

struct Run {
  std::function<double(double share)> held_out;
  int values = 50;
  double correlation = 0;
  double noise = 0.03;
  std::function<double(double share)> training = [](double t) { return 1.5 * std::exp(-2 * t); };
  int64_t between = 20;  ///< steps from one held-out loss to the next
};

/// Calls `each` after each held-out loss.
LossCourse course_of(const Run& run, int seed,
                     const std::function<void(const LossCourse&)>& each = {}) {
  LossCourse course;
  Noise noise(seed, run.correlation);
  Noise batches(seed + 1000000, 0);
  const int64_t steps = run.between * run.values;
  for (int64_t step = 0; step < steps; ++step) {
    const double share = static_cast<double>(step) / static_cast<double>(steps);
    course.add(step, run.training(share) * std::exp(0.1 * batches.next()));
    if ((step + 1) % run.between != 0) continue;
    course.add_held_out(step, run.held_out(share) * std::exp(run.noise * noise.next()));
    if (each) each(course);
  }
  return course;
}

struct Counts {
  int risen = 0;
  int falling = 0;
  int told = 0;  ///< intervals
  int covered = 0;
};

Counts count(const Run& run, int seeds = kSeeds) {
  Counts counts;
  for (int seed = 0; seed < seeds; ++seed) {
    // The training loss has no say in it.
    LossCourse course;
    Noise noise(seed, run.correlation);
    double sum[2] = {0, 0};
    for (int i = 0; i < run.values; ++i)
      course.add_held_out(
          i, run.held_out(i / (run.values - 1.0)) * std::exp(run.noise * noise.next()));
    const auto seen = held_out(course);
    if (!seen) continue;
    counts.risen += seen->course == HeldOut::Course::kRisen;
    counts.falling += seen->course == HeldOut::Course::kFalling;
    if (!std::isfinite(seen->rise.value)) continue;
    int number[2] = {0, 0};
    for (int i = 0; i < run.values; ++i) {
      const bool best = i >= seen->best_begin && i <= seen->best_end;
      if (!best && i < seen->late_begin) continue;
      sum[best ? 0 : 1] += run.held_out(i / (run.values - 1.0));
      ++number[best ? 0 : 1];
    }
    const double truth = sum[1] / number[1] - sum[0] / number[0];
    ++counts.told;
    counts.covered += seen->rise.low <= truth && truth <= seen->rise.high;
  }
  return counts;
}

double flat(double) { return 1; }
double floor_reached(double t) { return 1 + 1.5 * std::exp(-15 * t); }
double still_falls(double t) { return 0.6 + 1.5 * std::exp(-3 * t); }
/// Lowest at 0.3 of the run; ends higher by `rise`.
std::function<double(double)> overfits(double rise) {
  return [rise](double t) {
    return t < 0.3 ? 1 + 10 * (0.3 - t) * (0.3 - t) : 1 + rise * (t - 0.3) / 0.7;
  };
}

TEST(HeldOutTest, NoiseAboutALevelIsNoRise) {
  for (const auto& shape : {flat, floor_reached, still_falls}) {
    for (const int values : {9, 10, 15, 25, 50, 200}) {
      for (const double correlation : {0.0, 0.5, 0.8}) {
        EXPECT_LE(count({shape, values, correlation}).risen, kSeeds / 20)
            << shape(0) << " " << values << " " << correlation;
      }
    }
  }
}

// A run is looked at again with each value that comes.
TEST(HeldOutTest, NorAtAnyTimeOfTheRun) {
  constexpr int kRuns = 60;
  for (const auto& shape : {flat, floor_reached}) {
    for (const double correlation : {0.0, 0.5}) {
      int ever = 0;
      for (int seed = 0; seed < kRuns; ++seed) {
        bool said = false;
        course_of({shape, 100, correlation, 0.03, flat, 1}, seed, [&](const LossCourse& course) {
          said = said || held_out(course)->course == HeldOut::Course::kRisen;
        });
        ever += said;
      }
      EXPECT_LE(ever, kRuns / 20) << shape(0) << " " << correlation;
    }
  }
}

TEST(HeldOutTest, ARiseIsToldWithAnIntervalThatCoversIt) {
  for (const int values : {15, 25, 50, 200}) {
    for (const double correlation : {0.0, 0.5}) {
      const Counts counts = count({overfits(0.5), values, correlation});
      if (correlation == 0) {
        EXPECT_GE(counts.risen, kSeeds * (values < 25 ? 8 : 9) / 10) << values;
      }
      EXPECT_GE(counts.covered, counts.told * 19 / 20) << values << " " << correlation;
      EXPECT_GE(counts.told, kSeeds * 9 / 10);
    }
  }
  EXPECT_GE(count({overfits(0.2), 50, 0, 0.01}).risen, kSeeds * 9 / 10);
  for (const int values : {15, 30, 60})
    EXPECT_GE(count({overfits(0.3), values, 0.3}).risen, kSeeds / 2) << values;
  EXPECT_GE(count({overfits(1), 12, 0, 0.01}).risen, kSeeds * 9 / 10);
}

TEST(HeldOutTest, TheLowestOfManyIsLowByChance) {
  const Counts counts = count({flat, 100});
  EXPECT_GE(counts.covered, counts.told * 19 / 20);
  EXPECT_GE(counts.told, kSeeds / 2);
}

TEST(HeldOutTest, AFallThatGoesOnIsTold) {
  for (const double correlation : {0.0, 0.5}) {
    EXPECT_LE(count({flat, 50, correlation}).falling, kSeeds / 20);
    EXPECT_LE(count({floor_reached, 50, correlation}).falling, kSeeds / 20);
    EXPECT_LE(count({overfits(0.5), 50, correlation}).falling, kSeeds / 20);
  }
  EXPECT_GE(count({still_falls, 200, 0}).falling, kSeeds * 9 / 10);
  EXPECT_GE(count({still_falls, 50, 0, 0.01}).falling, kSeeds * 9 / 10);
  EXPECT_EQ(count({still_falls, 20, 0, 0.001}).falling, 0);  // too few
}

TEST(HeldOutTest, FewValuesSayNothing) {
  LossCourse course;
  EXPECT_FALSE(held_out(course).has_value());
  EXPECT_THAT(describe_held_out(course), IsEmpty());
  course.add_held_out(10, std::nan(""));
  EXPECT_FALSE(held_out(course).has_value());
  EXPECT_EQ(describe_held_out(course), "No held-out loss was finite.");
  course.add_held_out(20, 2);
  EXPECT_THAT(describe_held_out(course), HasSubstr("2 at step 20, the only one given"));
  course.add_held_out(30, 1);
  EXPECT_THAT(describe_held_out(course), HasSubstr("1 at step 30, the lowest of 2 values."));
  EXPECT_THAT(describe_held_out(course), HasSubstr("1 held-out loss was not finite."));
  // Five values after the lowest three, however clear.
  for (const double value : {1.0, 1.0, 5.0, 6.0, 7.0, 8.0, 9.0})
    course.add_held_out(course.held_out().last.step + 10, value);
  EXPECT_EQ(held_out(course)->course, HeldOut::Course::kNotTold);
  EXPECT_THAT(describe_held_out(course),
              HasSubstr("lowest of 9 values at step 30 (1); too few came after that"));
  EXPECT_THAT(held_out_alarms(course), IsEmpty());
}

TEST(HeldOutTest, AfterARestartLaterValuesCount) {
  LossCourse course;
  for (int64_t step = 0; step < 100; ++step) course.add_held_out(step, 1);
  course.add_held_out(50, 2);
  EXPECT_EQ(held_out(course)->values, 51U);
  EXPECT_EQ(held_out(course)->last.step, 50);
}

TEST(HeldOutTest, MemoryIsBounded) {
  LossCourse course;
  for (int64_t step = 0; step < 100000; ++step)
    course.add_held_out(step, overfits(0.5)(static_cast<double>(step) / 1e5));
  EXPECT_LE(course.held_out().stretches.all().size(), LossStretches::kMost);
  const auto seen = held_out(course);
  EXPECT_EQ(seen->values, 100000U);
  EXPECT_EQ(seen->course, HeldOut::Course::kRisen);
  EXPECT_EQ(seen->lowest.step, 30000);
}

// What the training loss did meanwhile tells overfitting from a run that goes wrong.
TEST(HeldOutTest, OverfittingIsARiseWhileTheTrainingLossFalls) {
  struct Case {
    std::function<double(double)> training;
    const char* code;
    const char* text;
  };
  const Case cases[] = {
      {[](double t) { return 1.5 * std::exp(-2 * t); }, "overfitting",
       "while the training loss fell from "},
      // By orders of magnitude, most of it within the best steps: no level, but no doubt either.
      {[](double t) { return 2 * std::exp(-12 * t) * (t < 0.5 ? 1 : 0.5); }, "overfitting",
       "while the training loss fell from "},
      {[](double t) { return 1 + 2 * std::exp(-20 * t) + 0.3 * t; }, "held_out_rose",
       "The training loss rose too, by "},
      {flat, "held_out_rose", "Whether the training loss fell meanwhile cannot be told."}};
  constexpr int kRuns = 40;
  for (const Case& each : cases) {
    int right = 0;
    int said = 0;
    for (int seed = 0; seed < kRuns; ++seed) {
      const LossCourse course = course_of({overfits(0.5), 50, 0, 0.03, each.training}, seed);
      const auto alarms = loss_alarms(course);
      const auto found = std::find_if(alarms.begin(), alarms.end(), [](const LossAlarm& alarm) {
        return alarm.code == "overfitting" || alarm.code == "held_out_rose";
      });
      if (found == alarms.end()) continue;
      ++said;
      right += found->code == each.code && found->text.find(each.text) != std::string::npos;
      EXPECT_EQ(found->severity, Severity::kWarning);
      EXPECT_GT(found->at.step, 100);
      EXPECT_LT(found->at.step, 600);
    }
    EXPECT_GE(said, kRuns * 9 / 10) << each.code;
    EXPECT_GE(right, said * 9 / 10) << each.text;
  }
}

TEST(HeldOutTest, TheGapIsThatOfTheEnd) {
  const LossCourse course = course_of({overfits(0.5), 50, 0, 0.001}, 1);
  const auto seen = held_out(course);
  // The last third of the values after the lowest: from about 0.78 of the run on.
  EXPECT_NEAR(seen->gap, 1 + 0.5 * 0.59 / 0.7 - 1.5 * std::exp(-2 * 0.89), 0.05);
  EXPECT_NEAR(static_cast<double>(seen->best.step), 300, 60);
  EXPECT_LT(seen->training_change.high, 0);
}

// A rate that was lowered is part of why a loss still falls.
TEST(HeldOutTest, AFallUnderALoweredRateIsSaidAsSuch) {
  for (const bool lowered : {false, true}) {
    LossCourse course;
    for (int64_t step = 0; step < 1000; ++step) {
      const double share = static_cast<double>(step) / 1000;
      course.add(step, still_falls(share), lowered ? 0.1 * (1.001 - share) : 0.1);
      if (step % 10 == 9) course.add_held_out(step, still_falls(share));
    }
    const auto alarms = held_out_alarms(course);
    ASSERT_EQ(alarms.size(), 1U);
    EXPECT_EQ(alarms[0].code, "held_out_falls");
    EXPECT_EQ(alarms[0].severity, Severity::kNote);
    EXPECT_EQ(alarms[0].text.find("stretched") != std::string::npos, lowered);
    EXPECT_THAT(describe_held_out(course), HasSubstr("; it still falls."));
  }
}

}  // namespace
}  // namespace tycho::analyzer
