#include "src/loss/loss_alarms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>

namespace tycho::analyzer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kSeeds = 20;

class Noise {
 public:
  explicit Noise(int seed) : random_(static_cast<uint64_t>(seed) * 7919 + 13) {}
  double normal() { return normal_(random_); }
  /// A factor with the median 1.
  double factor(double spread) { return std::exp(spread * normal()); }

 private:
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
};

using Loss = std::function<double(double step, Noise& noise)>;

LossCourse course_of(const Loss& loss, int64_t steps, int64_t every, int seed) {
  LossCourse course;
  Noise noise(seed);
  for (int64_t step = 0; step < steps; ++step) {
    const double value = loss(static_cast<double>(step), noise);
    if (step % every == 0) course.add(step, value);
  }
  return course;
}

std::vector<std::string> codes(const LossCourse& course) {
  std::vector<std::string> result;
  for (const LossAlarm& alarm : loss_alarms(course)) result.push_back(alarm.code);
  return result;
}

/// In how many of kSeeds runs this alarm and no other was given; "": none at all.
int rate(const Loss& loss, int64_t steps, int64_t every, const std::string& code) {
  int hits = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const auto given = codes(course_of(loss, steps, every, seed));
    hits += code.empty() ? given.empty() : given == std::vector<std::string>{code};
  }
  return hits;
}

double exponential(double step, double time, double floor) {
  return floor + (2.3 - floor) * std::exp(-step / time);
}

TEST(LossAlarmsTest, HealthyRunsAreLeftInPeace) {
  const std::vector<std::pair<const char*, Loss>> healthy = {
      {"power law",
       [](double t, Noise& n) { return (0.2 + 2.1 / std::sqrt(1 + t / 20)) * n.factor(0.1); }},
      {"exponential", [](double t, Noise& n) { return exponential(t, 600, 0.1) * n.factor(0.1); }},
      {"language model",
       [](double t, Noise& n) {
         return 2.5 + 3.5 * std::pow(1 + t / 50, -0.4) + 0.15 * n.normal();
       }},
      {"batches of one", [](double t, Noise& n) { return exponential(t, 800, 0.2) * n.factor(1); }},
      {"a drop of the learning rate",
       [](double t, Noise& n) {
         return ((t < 1400 ? 0.5 : 0.25) + 1.8 * std::exp(-t / 200)) * n.factor(0.1);
       }},
      {"policy gradient",
       [](double, Noise& n) { return -0.005 + 0.02 * n.normal() * n.factor(0.3); }},
      {"Wasserstein critic",
       [](double t, Noise& n) {
         return 10 * std::exp(-t / 30) - 3 * std::exp(-t / 900) + 0.4 * n.normal();
       }},
      {"fine-tuning",
       [](double t, Noise& n) { return 0.3 * std::pow(1 + t / 50, -0.3) * n.factor(0.3); }},
  };
  for (const auto& [name, loss] : healthy) {
    EXPECT_GE(rate(loss, 2000, 1, ""), kSeeds - 1) << name;
    EXPECT_GE(rate(loss, 2000, 10, ""), kSeeds - 1) << name;
  }
}

// In adversarial and reinforcement learning the loss may rise manyfold: that is worth a look, and
// no alarm.
TEST(LossAlarmsTest, LossesThatMayRiseRaiseNoAlarm) {
  double walk = 0;
  const std::vector<std::pair<const char*, Loss>> rising = {
      {"generator",
       [](double t, Noise& n) { return (0.7 + 1.5 * (1 - std::exp(-t / 300))) * n.factor(0.2); }},
      {"Wasserstein generator",
       [&walk](double t, Noise& n) {
         walk = t == 0 ? 0 : walk + 0.3 * n.normal() + 0.01;
         return 0.01 + walk + 0.3 * n.normal();
       }},
      {"value loss",
       [](double t, Noise& n) { return (30 + 1200 * t / (600 + t)) * n.factor(0.4); }},
  };
  for (const auto& [name, loss] : rising) {
    for (const int64_t every : {1, 10}) {
      for (int seed = 0; seed < kSeeds; ++seed) {
        for (const LossAlarm& alarm : loss_alarms(course_of(loss, 2000, every, seed)))
          EXPECT_NE(alarm.severity, Severity::kAlarm) << name << ": " << alarm.text;
      }
    }
  }
}

TEST(LossAlarmsTest, DivergenceIsAnAlarmWhereverItHappens) {
  const std::vector<std::pair<const char*, Loss>> diverging = {
      {"early",
       [](double t, Noise& n) {
         return t < 3   ? 2.3 + 0.05 * n.normal()
                : t < 8 ? 2.3 * std::pow(1e4, t - 2)
                        : 1.6e6 * n.factor(0.3);
       }},
      {"late",
       [](double t, Noise& n) {
         return t < 1200 ? exponential(t, 200, 0.1) * n.factor(0.2)
                         : std::min(1e9, 50 * std::exp((t - 1200) * 0.1));
       }},
      {"slowly", [](double t, Noise& n) { return 1.5 * std::exp(t * 0.006) * n.factor(0.1); }},
      {"downwards", [](double t, Noise& n) { return -std::exp(t * 0.05) + n.normal(); }},
  };
  for (const auto& [name, loss] : diverging) {
    EXPECT_EQ(rate(loss, 2000, 1, "loss_diverged"), kSeeds) << name;
    EXPECT_EQ(rate(loss, 2000, 10, "loss_diverged"), kSeeds) << name;
  }
}

TEST(LossAlarmsTest, DivergenceIsSeenInThreeLossesAndSaysWhereAndHowFar) {
  LossCourse course;
  course.add(0, 2.3);
  course.add(30, 3.6e22);
  course.add(59, 1.6e6);
  const auto alarms = loss_alarms(course);
  ASSERT_THAT(codes(course), ElementsAre("loss_diverged"));
  EXPECT_EQ(alarms[0].severity, Severity::kAlarm);
  EXPECT_EQ(alarms[0].at.step, 30);
  EXPECT_EQ(alarms[0].at.value, 3.6e22);
  EXPECT_THAT(alarms[0].text, HasSubstr("Before step 30 it was 2.3"));
  EXPECT_THAT(alarms[0].text, HasSubstr("3.6e22 at step 30"));
  EXPECT_THAT(alarms[0].text, HasSubstr("1.6e6 at step 59"));
}

TEST(LossAlarmsTest, WeightsBearWitnessToADivergenceOfAFactorOfTen) {
  const Loss loss = [](double t, Noise& n) {
    return t < 10 ? 2.3 + 0.1 * n.normal() : 40 * n.factor(0.3);
  };
  for (int seed = 0; seed < kSeeds; ++seed) {
    LossCourse course = course_of(loss, 50, 1, seed);
    course.add_weights(10);
    EXPECT_THAT(codes(course), IsEmpty());
    course.add_weights(90);
    EXPECT_THAT(codes(course), ElementsAre("loss_diverged"));
  }
}

TEST(LossAlarmsTest, HugeLossesDoNotOverflow) {
  LossCourse course;
  for (int64_t step = 0; step < 1000; ++step)
    course.add(step, (step % 2 == 0 ? 1.7e308 : -1.7e308));
  EXPECT_FALSE(describe_loss(course).empty());
  for (const LossStretch& stretch : course.stretches()) EXPECT_TRUE(std::isfinite(stretch.mean));
  loss_alarms(course);
}

TEST(LossAlarmsTest, WhatIsNotFiniteIsAnAlarmUnlessItWasOver) {
  LossCourse course;
  for (int64_t step = 0; step < 100; ++step)
    course.add(step, step < 40 ? 2.0 - 0.01 * static_cast<double>(step) : std::nan(""));
  auto alarms = loss_alarms(course);
  ASSERT_THAT(codes(course), ElementsAre("loss_not_finite"));
  EXPECT_EQ(alarms[0].severity, Severity::kAlarm);
  EXPECT_EQ(alarms[0].at.step, 40);
  EXPECT_THAT(alarms[0].text, HasSubstr("NaN at step 40 (1.61 at step 39"));
  EXPECT_THAT(alarms[0].text, HasSubstr("of 100 observed losses 60 were not finite"));
  course.add(100, 1.5);
  alarms = loss_alarms(course);
  ASSERT_THAT(codes(course), ElementsAre("loss_not_finite"));
  EXPECT_EQ(alarms[0].severity, Severity::kWarning);
  EXPECT_THAT(alarms[0].text, HasSubstr("from step 100 on"));
}

TEST(LossAlarmsTest, ASpikeIsSaidWithItsStepAndItsSize) {
  const Loss loss = [](double t, Noise& n) {
    const double usual = (0.2 + 2.1 / std::sqrt(1 + t / 20)) * n.factor(0.1);
    return t >= 700 && t < 706 ? usual + 6 * std::exp(-(t - 700) / 2) : usual;
  };
  for (int seed = 0; seed < kSeeds; ++seed) {
    const auto alarms = loss_alarms(course_of(loss, 2000, 1, seed));
    ASSERT_EQ(alarms.size(), 1u);
    EXPECT_EQ(alarms[0].code, "loss_spikes");
    EXPECT_EQ(alarms[0].at.step, 700);
    EXPECT_NEAR(alarms[0].at.value, 6.5, 0.5);
  }
}

TEST(LossAlarmsTest, ProgressThatIsUndoneIsSaid) {
  const Loss collapse = [](double t, Noise& n) {
    return t < 1000 ? exponential(t, 200, 0.1) * n.factor(0.2) : 2.3 + 0.03 * n.normal();
  };
  for (int seed = 0; seed < kSeeds; ++seed) {
    for (const int64_t every : {1, 10}) {
      const auto given = codes(course_of(collapse, 2000, every, seed));
      ASSERT_EQ(given.size(), 1u);
      EXPECT_TRUE(given[0] == "loss_jumped" || given[0] == "loss_rose") << given[0];
    }
  }
}

TEST(LossAlarmsTest, ALossThatStaysAtChanceIsStuck) {
  const Loss stuck = [](double t, Noise& n) {
    return 2.303 + 0.3 * std::exp(-t / 10) + 0.03 * n.normal();
  };
  EXPECT_GE(rate(stuck, 1000, 1, "loss_stuck"), kSeeds - 1);
  EXPECT_GE(rate(stuck, 1000, 10, "loss_stuck"), kSeeds * 3 / 4);
  EXPECT_EQ(rate(stuck, 40, 1, ""), kSeeds);  // too early to tell
}

TEST(LossAlarmsTest, StepsAtTheFloorAreSaidToBeWasted) {
  // All but memorised by the middle of the run, as digits are; and at rest above zero.
  const Loss memorised = [](double t, Noise& n) {
    return 2.3 * std::exp(-t / 400) / (1 + t / 80) * n.factor(0.5);
  };
  const Loss resting = [](double t, Noise& n) { return exponential(t, 150, 0.5) * n.factor(0.05); };
  for (const Loss& loss : {memorised, resting}) {
    for (int seed = 0; seed < kSeeds; ++seed) {
      const auto alarms = loss_alarms(course_of(loss, 3000, 1, seed));
      ASSERT_EQ(alarms.size(), 1u);
      EXPECT_EQ(alarms[0].code, "loss_at_floor");
      EXPECT_EQ(alarms[0].severity, Severity::kNote);
      EXPECT_GT(alarms[0].at.step, 200);
      EXPECT_LT(alarms[0].at.step, 1500);
    }
  }
  // Five batches of noise hide whether it still falls: nothing is said.
  const Loss noisy = [](double t, Noise& n) { return exponential(t, 150, 0.5) * n.factor(0.5); };
  EXPECT_GE(rate(noisy, 3000, 20, ""), kSeeds - 1);
}

TEST(LossAlarmsTest, FewLossesAreCalledFew) {
  LossCourse course;
  EXPECT_EQ(describe_loss(course), "");
  for (int64_t step = 0; step < 4; ++step) course.add(step, 2.3 - 0.1 * static_cast<double>(step));
  EXPECT_THAT(codes(course), IsEmpty());
  EXPECT_THAT(describe_loss(course), HasSubstr("2.3 at step 0 and 2 at step 3"));
  EXPECT_THAT(describe_loss(course), HasSubstr("4 losses are too few"));
}

TEST(LossCourseTest, StretchesHoldAllLossesWhateverTheirNumber) {
  for (const int64_t count : {1, 255, 256, 257, 5000}) {
    LossCourse course;
    double sum = 0;
    for (int64_t step = 0; step < count; ++step) {
      course.add(step, static_cast<double>(step % 7));
      sum += static_cast<double>(step % 7);
    }
    const auto stretches = course.stretches();
    EXPECT_LE(stretches.size(), LossStretches::kMost);
    uint64_t total = 0;
    double seen = 0;
    for (const LossStretch& stretch : stretches) {
      total += stretch.count;
      seen += stretch.mean * static_cast<double>(stretch.count);
    }
    EXPECT_EQ(total, static_cast<uint64_t>(count));
    EXPECT_NEAR(seen, sum, 1e-9 * (1 + sum));
    EXPECT_EQ(stretches.front().begin, 0);
    EXPECT_EQ(stretches.back().end, count - 1);
  }
}

}  // namespace
}  // namespace tycho::analyzer
