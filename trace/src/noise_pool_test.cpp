#include "tycho/trace/noise_pool.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

namespace tycho::trace {
namespace {

constexpr double kBatch = 16;
constexpr int kDimensions = 20;

/// Estimates of one step, with the distribution that Gaussian gradients of kDimensions dimensions
/// give them: a batch of kBatch examples, tr Sigma spread evenly.
class Estimates {
 public:
  explicit Estimates(uint32_t seed) : generator_(seed) {}
  void draw(double trace, double signal) {
    double square = 0;
    for (int j = 0; j < kDimensions; ++j) {
      const double mean = j == 0 ? std::sqrt(signal) : 0;
      const double x = mean + std::sqrt(trace / kDimensions / kBatch) * normal_(generator_);
      square += x * x;
    }
    std::chi_squared_distribution<double> chi((kBatch - 1) * kDimensions);
    this->trace = trace * chi(generator_) / ((kBatch - 1) * kDimensions);
    this->signal = square - this->trace / kBatch;
  }
  double trace = 0;
  double signal = 0;

 private:
  std::mt19937 generator_;
  std::normal_distribution<double> normal_;
};

struct Outcome {
  double covered = 0;  // share of the looks whose interval holds the noise scale of that step
  double known = 0;    // share that gave a value
  double last = 0;     // observations in the last window, mean
};

/// `trace` and `signal` over the share of the run that has passed.
Outcome follow(const std::function<double(double)>& trace,
               const std::function<double(double)>& signal, int steps) {
  constexpr int kSeeds = 20;
  Outcome outcome;
  double looks = 0;
  for (uint32_t seed = 1; seed <= kSeeds; ++seed) {
    Estimates estimates(seed);
    NoisePool pool;
    for (int step = 0; step < steps; ++step) {
      const double passed = static_cast<double>(step) / steps;
      estimates.draw(trace(passed), signal(passed));
      pool.add(estimates.trace, estimates.signal, step);
      if (step < 16 || step % 7 != 0) continue;
      const PooledNoiseScale scale = pool.pooled();
      const double truth = trace(passed) / signal(passed);
      looks += 1;
      outcome.covered += scale.low <= truth && truth <= scale.high;
      outcome.known += !std::isnan(scale.value);
      if (std::isnan(scale.value)) continue;
      EXPECT_LE(scale.low, scale.value);
      EXPECT_GE(scale.high, scale.value);
    }
    outcome.last += static_cast<double>(pool.pooled().observations) / kSeeds;
  }
  outcome.covered /= looks;
  outcome.known /= looks;
  return outcome;
}

std::function<double(double)> constant(double value) {
  return [value](double) { return value; };
}
std::function<double(double)> decades(double start, double count) {
  return [=](double passed) { return start * std::pow(10, count * passed); };
}

TEST(NoisePoolTest, CoversWhereNothingMoves) {
  for (const double over_batch : {0.1, 1.0, 10.0}) {
    const Outcome outcome = follow(constant(over_batch * kBatch), constant(1), 1500);
    EXPECT_GE(outcome.covered, 0.95) << over_batch;
    EXPECT_GE(outcome.known, over_batch < 10 ? 0.8 : 0.3) << over_batch;
    EXPECT_GE(outcome.last, 200) << over_batch;
  }
}

TEST(NoisePoolTest, CoversWhileTheSignalFadesAndBothFall) {
  // |G|^2 falls ten thousandfold; tr Sigma stays, or falls with it.
  EXPECT_GE(follow(constant(0.1 * kBatch), decades(1, -4), 1000).covered, 0.95);
  EXPECT_GE(follow(constant(0.1 * kBatch), decades(1, -4), 100).covered, 0.95);
  const Outcome both = follow(decades(kBatch, -4), decades(1, -4), 1000);
  EXPECT_GE(both.covered, 0.95);
  EXPECT_GE(both.known, 0.4) << "their ratio stays, and can be told";
  EXPECT_LE(both.last, 200) << "the window ends where the scale was another";
  EXPECT_GE(follow(decades(10 * kBatch, -2), constant(1), 1000).covered, 0.95);
  EXPECT_GE(follow(constant(10 * kBatch), decades(1, -0.3), 2000).covered, 0.95);
}

TEST(NoisePoolTest, ForgetsWhatWasBeforeAJump) {
  const Outcome outcome = follow(
      constant(kBatch), [](double passed) { return passed < 0.6 ? 10 : 0.1; }, 1000);
  EXPECT_GE(outcome.covered, 0.95);
}

TEST(NoisePoolTest, GivesABoundBeforeItGivesAValue) {
  Estimates estimates(3);
  NoisePool pool;
  for (int step = 0; step < 3; ++step) {
    estimates.draw(100 * kBatch, 1);
    pool.add(estimates.trace, estimates.signal, step);
    EXPECT_TRUE(std::isnan(pool.pooled().low));
  }
  for (int step = 3; step < 12; ++step) {
    estimates.draw(100 * kBatch, 1);
    pool.add(estimates.trace, estimates.signal, step);
  }
  const PooledNoiseScale scale = pool.pooled();
  EXPECT_TRUE(std::isnan(scale.value));
  EXPECT_TRUE(std::isnan(scale.standard_error));
  EXPECT_GT(scale.low, kBatch);
  EXPECT_LT(scale.low, 100 * kBatch);
  EXPECT_EQ(scale.high, std::numeric_limits<double>::infinity());
  EXPECT_EQ(scale.end, 11);
  EXPECT_GE(scale.observations, 8u);
}

TEST(NoisePoolTest, EdgesAreHonest) {
  NoisePool pool;
  EXPECT_EQ(pool.pooled().observations, 0u);
  pool.add(std::nan(""), 1, 0);
  pool.add(1, std::numeric_limits<double>::infinity(), 1);
  EXPECT_EQ(pool.observations(), 0u);
  for (int step = 0; step < 20; ++step) pool.add(0, 2, step);  // equal examples: no noise at all
  EXPECT_EQ(pool.pooled().value, 0);
  EXPECT_EQ(pool.pooled().high, 0);
  NoisePool none;
  for (int step = 0; step < 20; ++step) none.add(1, 0, step);  // noise, and nothing to learn
  EXPECT_TRUE(std::isnan(none.pooled().value));
  EXPECT_GT(none.pooled().low, 1e6);
  NoisePool exact;
  for (int step = 0; step < 20; ++step) exact.add(6, 2, step);
  EXPECT_DOUBLE_EQ(exact.pooled().value, 3);
}

TEST(NoisePoolTest, MemoryIsBounded) {
  NoisePool pool;
  for (int step = 0; step < 200000; ++step) pool.add(10 + step % 3, 1, step);
  EXPECT_LE(pool.observations(), 20000u);
  EXPECT_NEAR(pool.pooled().value, 11, 0.1);
}

}  // namespace
}  // namespace tycho::trace
