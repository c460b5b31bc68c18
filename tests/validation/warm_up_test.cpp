// A network with large initial weights, whose sharpness at the start is known exactly, trained with
// and without warm-up.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "toy_network.h"

namespace tycho::analyzer {
namespace {

Finding judged(const ToyRun& options) { return find(train(options), "warm_up", "run"); }

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " [" + std::to_string(f.ci_low) + ", " +
         std::to_string(f.ci_high) + "] " + f.gate + " / " + f.advice;
}

ToyRun toy(double gain, double learning_rate, int warm_up) {
  ToyRun options;
  options.gain = gain;
  options.learning_rate = learning_rate;
  options.steps = 2 * warm_up + 300;
  options.every = 5;
  if (warm_up > 0) {
    options.schedule = [warm_up](int step) { return std::min(1.0, (step + 1.0) / warm_up); };
  }
  return options;
}

TEST(WarmUpTest, TheLossJumpsIfAndOnlyIfTheEdgeIsPassed) {
  const Finding calm = judged(toy(1, 0.05, 0));
  EXPECT_EQ(verdict(calm), "HOLDS") << told(calm);
  EXPECT_NE(calm.advice.find("needs no warm-up"), std::string::npos) << told(calm);
  const Finding spared = judged(toy(1, 0.05, 100));
  EXPECT_EQ(verdict(spared), "HOLDS") << told(spared);
  EXPECT_NE(spared.advice.find("was not needed"), std::string::npos) << told(spared);
  for (const double gain : {2.0, 3.0}) {  // at 3 the loss does not come back
    const Finding jump = judged(toy(gain, 0.2, 0));
    EXPECT_EQ(verdict(jump), "HOLDS") << told(jump);
    EXPECT_NE(jump.advice.find("a warm-up from"), std::string::npos) << told(jump);
    EXPECT_GE(jump.importance, 0.6);
  }
  const Finding brief = judged(toy(2, 0.2, 1000));
  EXPECT_EQ(verdict(brief), "HOLDS") << told(brief);
  EXPECT_NE(brief.advice.find("too short"), std::string::npos) << told(brief);
  const Finding sharpened = judged(toy(1, 0.2, 1000));
  EXPECT_EQ(verdict(sharpened), "HOLDS") << told(sharpened);
  EXPECT_NE(sharpened.advice.find("training sharpened"), std::string::npos) << told(sharpened);
}

// Sharpness falls from 40 to `final_sharpness` over 50 steps; learning rate 0.1 (edge at 20) after
// a linear ramp; full batch.
struct Series {
  int warm_up = 100;
  double final_sharpness = 5;
  double jump = 1;  // factor on the loss at step 60 to 70
  bool full_batch = true;
  int first_measurement = 0;
  int steps = 400;
  double noise = 0;  // of the sharpness, relative; a tenth of it of the loss
};

Finding simulate(const Series& options, uint32_t seed = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const auto noisy = [&](double share) { return 1 + share * options.noise * normal(generator); };
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {10, 10});
  for (const char* name :
       {"loss", "probe_loss", "learning_rate", "preconditioned_sharpness", "stability_threshold"}) {
    run.statistic(name);
  }
  run.open();
  double before = 1;
  for (int step = 0; step < options.steps; ++step) {
    const double rate = 0.1 * std::min(1.0, (step + 1.0) / options.warm_up);
    const double after =
        std::exp(-0.01 * step) * (step >= 60 && step < 70 ? options.jump : 1) * noisy(0.1);
    run.step(step);
    run.put("loss", options.full_batch ? before : 2 * before);
    run.put("probe_loss", after);
    before = after;
    run.put("learning_rate", rate);
    if (step < options.first_measurement || step % 2 != 0) continue;
    const double share = std::min(1.0, step / 50.0);
    run.put("preconditioned_sharpness", (40 + share * (options.final_sharpness - 40)) * noisy(1));
    run.put("stability_threshold", 2 / rate);
  }
  run.finish();
  return find(engine.findings(), "warm_up", "run");
}

TEST(WarmUpTest, NeededAndLongEnoughSaysThatAShorterOneWouldDo) {
  const Finding finding = simulate({});
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_NE(finding.advice.find("was needed and was long enough"), std::string::npos)
      << told(finding);
  EXPECT_NE(finding.advice.find("would have started at 2 of the edge"), std::string::npos)
      << told(finding);
}

TEST(WarmUpTest, WhatTheEdgeDoesNotExplainViolates) {
  Series jump;
  jump.jump = 3;
  EXPECT_EQ(verdict(simulate(jump)), "VIOLATED") << told(simulate(jump));
  Series ignored;  // above the edge from half of the ramp on, and nothing happens
  ignored.final_sharpness = 40;
  EXPECT_EQ(verdict(simulate(ignored)), "VIOLATED") << told(simulate(ignored));
}

TEST(WarmUpTest, StaysSilentWithoutItsGate) {
  Series noisy;
  noisy.full_batch = false;
  EXPECT_EQ(verdict(simulate(noisy)), "NOT_MEASURED") << told(simulate(noisy));
  Series late;
  late.first_measurement = 50;
  EXPECT_EQ(verdict(simulate(late)), "NOT_APPLICABLE");
  Series rising;
  rising.steps = 90;
  EXPECT_EQ(verdict(simulate(rising)), "NOT_YET");
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(Series&)>& change) {
  Series options;
  options.noise = 0.05;
  change(options);
  return {"warm_up", setting, expected,
          [options](uint32_t seed) { return simulate(options, seed); }};
}

CalibrationCase network(const std::string& setting, double gain, double learning_rate,
                        int warm_up) {
  CalibrationCase result{"warm_up", setting, Expected::kHolds, [=](uint32_t seed) {
                           ToyRun options = toy(gain, learning_rate, warm_up);
                           options.seed = seed;
                           options.width = 12;
                           return judged(options);
                         }};
  result.power = 0.6;  // others start too near the edge, or their loss rises too little
  return result;
}

const CalibrationCases kCases({
    rates("sharpness of twice the edge that falls during the ramp", Expected::kHolds,
          [](Series&) {}),
    network("tanh network below its edge, without a warm-up", 1, 0.05, 0),
    network("tanh network with weights three times as large, without a warm-up", 3, 0.2, 0),
    rates("a loss that triples below the edge", Expected::kViolated, [](Series& s) { s.jump = 3; }),
    rates("above the edge in the ramp, and the loss falls", Expected::kViolated,
          [](Series& s) { s.final_sharpness = 40; }),
    rates("small batches", Expected::kSilent, [](Series& s) { s.full_batch = false; }),
    rates("the sharpness measured from half of the ramp on", Expected::kSilent,
          [](Series& s) { s.first_measurement = 50; }),
});

}  // namespace
}  // namespace tycho::analyzer
