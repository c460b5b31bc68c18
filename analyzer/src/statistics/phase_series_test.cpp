#include "src/statistics/phase_series.h"

#include <gtest/gtest.h>

namespace tycho::analyzer {
namespace {

ParameterSettings with_rate(double learning_rate) {
  ParameterSettings settings;
  settings.known = true;
  settings.optimizer = "SGD";
  settings.learning_rate = learning_rate;
  return settings;
}

TEST(RecentHalfTest, ForgetsTheTransient) {
  RecentHalf recent(1);
  for (int step = 0; step < 10000; ++step) recent.add({step < 4000 ? 100.0 : 1.0}, step);
  EXPECT_EQ(recent.blocks().mean({1}).value, 1);
  EXPECT_GE(recent.window_begin(), 4000);
  EXPECT_LE(recent.window_begin(), 5200);
  EXPECT_EQ(recent.window_end(), 9999);
}

TEST(RecentHalfTest, MemoryIsBoundedAndTheMeanStaysExact) {
  BlockAverages blocks(1);
  for (int i = 0; i < 1 << 16; ++i) blocks.add({static_cast<double>(i % 4)}, i);
  EXPECT_LE(blocks.mean({1}).blocks, 64u);
  EXPECT_EQ(blocks.mean({1}).value, 1.5);
}

TEST(PhaseSeriesTest, JudgesThePhaseWithTheMostObservations) {
  PhaseSeries series(1);
  int64_t step = 0;
  for (const auto& [rate, length] : {std::pair{0.3, 10}, {0.1, 100}, {0.01, 20}}) {
    for (int i = 0; i < length; ++i, ++step) {
      series.set_settings(with_rate(rate), step);
      series.pass(step);
      series.add({rate}, step);
    }
  }
  EXPECT_EQ(series.best().settings.learning_rate, 0.1);
  EXPECT_EQ(series.best().series.blocks().observations(), 100u);
  EXPECT_EQ(series.best().begin, 10);
  EXPECT_EQ(series.best().end, 109);
  EXPECT_EQ(series.current().settings.learning_rate, 0.01);
}

TEST(PhaseSeriesTest, WithoutObservationsTheLongestPhaseCounts) {
  PhaseSeries series(1);
  for (int64_t step = 0; step < 130; ++step) {
    series.set_settings(with_rate(step < 100 ? 0.1 : 0.01), step);
    series.pass(step);
  }
  EXPECT_EQ(series.best().steps(), 100);
}

TEST(ParameterSettingsTest, FollowsTheGroupsOfTheOptimizer) {
  v1::OptimizerSettings settings;
  settings.set_optimizer("AdamW");
  v1::ParameterGroup* group = settings.add_group();
  group->set_weight_decay(0.1);
  group->add_parameter(1);
  group->add_parameter(99);  // no such parameter
  const auto result = settings_by_parameter(&settings, 3);
  ASSERT_EQ(result.size(), 3u);
  EXPECT_FALSE(result[0].known);
  EXPECT_TRUE(result[1].known);
  EXPECT_TRUE(result[1].decays_decoupled());
  EXPECT_EQ(result[1].weight_decay, 0.1);
  EXPECT_EQ(settings_by_parameter(nullptr, 2).size(), 2u);
}

}  // namespace
}  // namespace tycho::analyzer
