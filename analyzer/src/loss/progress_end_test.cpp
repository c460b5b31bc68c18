#include "src/loss/progress_end.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

namespace tycho::analyzer {
namespace {

constexpr int kSeeds = 40;
constexpr int64_t kSteps = 3000;
constexpr double kPi = 3.14159265358979323846;

/// Noise with the variance 1 and this correlation time, in steps; 0: white.
class Noise {
 public:
  Noise(uint64_t seed, double time) : random_(seed * 104729 + 11), memory_(std::exp(-1 / time)) {
    if (time <= 0) memory_ = 0;
  }
  double next() {
    value_ = memory_ * value_ + std::sqrt(1 - memory_ * memory_) * normal_(random_);
    return value_;
  }

 private:
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
  double memory_;
  double value_ = 0;
};

struct Run {
  std::function<double(double step)> loss;
  double noise = 0.05;  // of the loss
  double time = 0;      // its correlation time
  std::function<double(double step)> rate = [](double) { return 0.1; };
  int64_t every = 1;
};

std::optional<ProgressEnd> end_of(const Run& run, int seed) {
  LossCourse course;
  Noise noise(static_cast<uint64_t>(seed), run.time);
  for (int64_t step = 0; step < kSteps; ++step) {
    const auto t = static_cast<double>(step);
    const double value = run.loss(t) * std::exp(run.noise * noise.next());
    if (step % run.every == 0) course.add(step, value, run.rate(t));
  }
  return progress_end(course);
}

int count(const Run& run) {
  int said = 0;
  for (int seed = 0; seed < kSeeds; ++seed) said += end_of(run, seed).has_value();
  return said;
}

double power(double t) { return 0.2 + 2.1 / std::sqrt(1 + t / 20); }
double language(double t) { return 2.5 + 3.5 * std::pow(1 + t / 50, -0.4); }
double slow(double t) { return 0.5 + 1.8 * std::exp(-t / 1500); }
double exponential(double t) { return 0.5 + 1.8 * std::exp(-t / 150); }
double cosine(double t) { return 0.1 * (1 + std::cos(kPi * t / kSteps)) / 2; }

TEST(ProgressEndTest, OfALossThatStillFallsItIsNotSaid) {
  for (const auto& loss : {power, language, slow}) {
    for (const double noise : {0.02, 0.2}) {
      for (const double time : {0.0, 20.0}) {
        EXPECT_LE(count({loss, noise, time}), kSeeds / 20)
            << noise << " " << time << " " << loss(0);
      }
    }
  }
}

TEST(ProgressEndTest, AFloorIsSaidWithItsStepAndABoundThatHolds) {
  for (const double time : {0.0, 5.0}) {
    for (const double noise : {0.02, 0.05}) {
      int said = 0;
      int right = 0;
      int bound = 0;
      for (int seed = 0; seed < kSeeds; ++seed) {
        const auto end = end_of({exponential, noise, time}, seed);
        if (!end) continue;
        ++said;
        // 2 % of the floor of 0.5 is left at this step.
        const double truth = 150 * std::log(1.8 / (0.02 * 0.5));
        const auto step = static_cast<double>(end->step);
        right += step > truth / 1.5 && step < 1.5 * truth && end->earliest <= end->step;
        const double floor = 0.5 * std::exp(noise * noise / 2);
        const double rest = exponential(static_cast<double>(end->step) + end->after / 16) *
                                std::exp(noise * noise / 2) -
                            floor;
        bound += rest <= end->at_most;
        EXPECT_EQ(end->last, kSteps - 1);
        EXPECT_EQ(end->after, static_cast<double>(kSteps - end->step));
        EXPECT_FALSE(end->at_zero);
      }
      // With correlated noise of 5 % an eighth of the steps does not tell 2 % of the loss.
      if (time * noise < 0.2) {
        EXPECT_GE(said, kSeeds * 4 / 5) << noise << " " << time;
      }
      EXPECT_GE(right, said * 19 / 20) << noise << " " << time;
      EXPECT_GE(bound, said * 19 / 20) << noise << " " << time;
    }
  }
}

TEST(ProgressEndTest, WhereNoiseHidesTheRestNothingIsSaid) {
  EXPECT_LE(count({exponential, 0.5, 0, [](double) { return 0.1; }, 20}), kSeeds / 20);
  EXPECT_LE(count({exponential, 0.2, 300}), kSeeds / 20);
}

// Decayed rates hold a loss where it is: that it rests there says nothing of the steps.
TEST(ProgressEndTest, WhatADecayOfTheRateExplainsIsNotSaid) {
  const auto frozen = [](double t) { return power(std::min(t, 900.0)); };
  const auto dropped = [](double t) { return t < 900 ? 0.1 : 0.001; };
  EXPECT_EQ(count({frozen, 0.02, 0, dropped}), 0);
  EXPECT_GE(count({frozen, 0.02, 0}), kSeeds * 19 / 20);  // the same at a constant rate
  // With a cosine the loss goes on to fall as the rate does.
  const auto annealed = [](double t) { return power(t) * (0.8 + 0.2 * cosine(t) / 0.1); };
  EXPECT_LE(count({annealed, 0.05, 0, cosine}), kSeeds / 20);
  // One that rests from early on, at a high rate, is said to rest with a cosine too.
  EXPECT_GE(count({exponential, 0.02, 0, cosine}), kSeeds * 19 / 20);
}

// A loss of 1e30 before says nothing of what came later.
TEST(ProgressEndTest, ARunThatBrokeAndWasRepairedIsMeasuredByItsFirstLoss) {
  const auto broken = [](double t) {
    return t > 2 && t < 5 ? 1e32 : t == 5 ? std::nan("") : exponential(t);
  };
  for (int seed = 0; seed < 5; ++seed) {
    const auto end = end_of({broken, 0.02}, seed);
    ASSERT_TRUE(end.has_value());
    EXPECT_FALSE(end->at_zero);
    EXPECT_NEAR(end->start, 2.3, 0.4);
    EXPECT_NEAR(end->level, 0.5, 0.01);
    EXPECT_GT(end->step, 400);
  }
}

TEST(ProgressEndTest, StepsThatGoBackAreNoRun) {
  LossCourse course;
  for (int64_t step = 0; step < 200; ++step)
    course.add(-step, 1 / (1.0 + static_cast<double>(step)));
  EXPECT_FALSE(progress_end(course).has_value());
}

TEST(ProgressEndTest, ALossAtZeroRestsWhateverItsRate) {
  const auto memorised = [](double t) { return 2.3 * std::exp(-t / 300); };
  for (const auto& rate : {std::function<double(double)>(cosine),
                           std::function<double(double)>([](double) { return 0.1; })}) {
    int said = 0;
    for (int seed = 0; seed < kSeeds; ++seed) {
      const auto end = end_of({memorised, 0.5, 0, rate}, seed);
      said += end.has_value() && end->at_zero && end->step > 900 && end->step < 1900;
    }
    EXPECT_GE(said, kSeeds * 19 / 20);
  }
}

}  // namespace
}  // namespace tycho::analyzer
