#include "src/statistics/level_change.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tycho::analyzer {
namespace {

constexpr int kSeeds = 1000;

/// A parabola that ends at `rise`, with noise of variance 1.
std::vector<double> series(int seed, size_t size, double rise, double correlation) {
  std::mt19937_64 random(static_cast<uint64_t>(seed) * 15485863 + 1);
  std::normal_distribution<double> normal;
  double noise = normal(random);
  std::vector<double> result;
  for (size_t i = 0; i < size; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(size - 1);
    result.push_back(rise * share * share + noise);
    noise = correlation * noise + std::sqrt(1 - correlation * correlation) * normal(random);
  }
  return result;
}

double mean_square(size_t size, Part part) {
  double sum = 0;
  for (size_t i = part.begin; i < part.end; ++i)
    sum += std::pow(static_cast<double>(i) / static_cast<double>(size - 1), 2);
  return sum / static_cast<double>(part.size());
}

TEST(LevelChangeTest, TheIntervalCoversTheChangeWhateverTheTrend) {
  for (const size_t size : {size_t{9}, size_t{20}, size_t{60}}) {
    for (const double rise : {0.0, 100.0}) {
      for (const double correlation : {0.0, 0.5}) {
        const Part before{0, size / 3};
        const Part after{size - size / 3, size};
        const double truth = rise * (mean_square(size, after) - mean_square(size, before));
        int covered = 0;
        double width = 0;
        for (int seed = 0; seed < kSeeds; ++seed) {
          const LevelChange change =
              level_change(series(seed, size, rise, correlation), before, after);
          covered += std::fabs(change.change() - truth) <= change.half_width(0.95);
          width += change.half_width(0.95) / kSeeds;
        }
        // Of a few values correlation cannot be told; it is allowed for by what is usual.
        EXPECT_GE(covered, kSeeds * (correlation > 0 && size < 60 ? 88 : 94) / 100)
            << size << " " << rise << " " << correlation;
        // No trend counts as noise: for white noise the half width is not above 3 times the ideal.
        if (correlation == 0 && size > 9) {
          EXPECT_LT(width, 3 * 1.96 * std::sqrt(6.0 / static_cast<double>(size)));
        }
      }
    }
  }
}

TEST(LevelChangeTest, OfTooFewValuesOrOfSomeThatAreNotFiniteItSaysNothing) {
  EXPECT_TRUE(std::isinf(level_change({1, 2, 3, 4, 5, 6, 7, 9}, {0, 3}, {5, 8}).error));
  const double nan = std::nan("");
  EXPECT_TRUE(std::isinf(level_change({1, 2, 3, 4, nan, 6, 7, 9, 8}, {0, 3}, {5, 8}).error));
  const LevelChange change = level_change({1, 1, 1, 2, 2, 3, 3, 3, 3}, {0, 3}, {6, 9});
  EXPECT_EQ(change.before, 1);
  EXPECT_EQ(change.after, 3);
  EXPECT_GT(change.error, 0);
  EXPECT_TRUE(std::isfinite(change.error));
}

TEST(LevelChangeTest, AParabolaHasNoNoise) {
  std::vector<double> exact;
  for (int i = 0; i < 20; ++i) exact.push_back(3.0 + 2 * i + 0.5 * i * i);
  const LevelChange change = level_change(exact, {0, 5}, {15, 20});
  EXPECT_LT(change.half_width(0.95), 1e-9 * change.change());
}

}  // namespace
}  // namespace tycho::analyzer
