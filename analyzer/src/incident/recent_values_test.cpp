#include "src/incident/recent_values.h"

#include <gtest/gtest.h>

#include "src/simulated_run.h"

namespace tycho::analyzer {
namespace {

// A held-out loss is a second frame of its step, and no step back.
TEST(RecentValuesTest, WhatComesAfterAStepLeavesItsValues) {
  Engine engine;
  SimulatedRun run(engine);
  RecentValues losses(watched_quantities().front());
  engine.add_consumer(
      [&](const RunContext& context, const Frame& frame) { losses.observe(context, frame); });
  run.statistic(watched_quantities().front().statistic);
  const uint32_t held_out = run.statistic("validation_loss");
  run.open();
  for (int64_t step = 0; step < 10; ++step) {
    run.step(step);
    run.put(watched_quantities().front().statistic, 1);
    run.send();
    v1::Record record;
    record.set_step(step);
    v1::Column* column = record.add_column();
    column->set_statistic(held_out);
    column->set_scope(v1::SCOPE_RUN);
    column->add_value(1);
    engine.on_record("validation", record, 0);
  }
  run.finish();
  EXPECT_EQ(losses.of(0).size(), 10u);
}

}  // namespace
}  // namespace tycho::analyzer
