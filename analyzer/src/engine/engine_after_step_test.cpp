#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

// A trainer evaluates when a step is over: live its frame is complete by then, in a trace it is
// not.
TEST(EngineAfterStepTest, WhatComesAfterAStepIsShownBehindIt) {
  std::vector<std::vector<std::pair<int64_t, double>>> shown;
  for (const bool live : {false, true}) {
    Engine engine;
    SimulatedRun run(engine);
    run.statistic("loss");
    const uint32_t held_out = run.statistic("validation_loss");
    std::vector<std::pair<int64_t, double>> frames;
    engine.add_consumer([&](const RunContext& context, const Frame& frame) {
      const auto loss = frame.column(context.column("loss", v1::SCOPE_RUN));
      const auto after = frame.column(context.column("validation_loss", v1::SCOPE_RUN));
      EXPECT_NE(loss.present, after.present);
      EXPECT_EQ(frame.is_after_step(), after.present);
      frames.emplace_back(frame.step(), loss.present ? loss[0] : after[0]);
    });
    run.open();
    const auto put = [&](int64_t step, double value) {
      v1::Record record;
      record.set_step(step);
      v1::Column* column = record.add_column();
      column->set_statistic(held_out);
      column->set_scope(v1::SCOPE_RUN);
      column->add_value(value);
      engine.on_record("validation", record, 0);
    };
    for (int64_t step = 0; step < 4; ++step) {
      run.step(2 * step);
      run.put("loss", 1);
      run.send();
      if (live) engine.finish();
      if (step == 1) put(2, 5);
      if (step == 2) put(5, 6);  // of a step that was not observed
      if (step == 3) put(4, 7);  // too late
    }
    run.finish();
    EXPECT_EQ(engine.frames(), 4u);
    EXPECT_EQ(engine.ignored().late, 1u);
    EXPECT_EQ(engine.last_step(), 6);
    shown.push_back(frames);
  }
  const std::vector<std::pair<int64_t, double>> expected = {{0, 1}, {2, 1}, {2, 5},
                                                            {4, 1}, {5, 6}, {6, 1}};
  EXPECT_EQ(shown[0], expected);
  EXPECT_EQ(shown[1], expected);
}

}  // namespace
}  // namespace tycho::analyzer
