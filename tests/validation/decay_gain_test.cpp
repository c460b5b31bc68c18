// SGD in a quadratic basin with known noise, whose learning rate is lowered.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

constexpr double kBatch = 32;
constexpr double kFloor = 0.5;  // the least loss

struct Options {
  int steps = 6000;
  double rate = 0.2;
  double momentum = 0;
  double noise = 0.02;  // of each component of a step's gradient
  double recorded = 1;  // over the true trace
  double batch_noise = 0.02;
  std::string optimizer = "SGD";
  bool with_noise = true;
  int every = 1;
  std::function<double(double share)> schedule = [](double) { return 1.0; };
};

/// Constant for 60 % of the run, then evenly to 0.
double late_decay(double share) { return share < 0.6 ? 1 : (1 - share) / 0.4; }

struct Outcome {
  Finding finding;
  double gain = 0;  // that theory foretells, of lowering the rate to 0
};

Outcome simulate(const Options& options, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {6, 6});
  run.statistic("loss");
  run.statistic("learning_rate");
  run.statistic("batch_size");
  run.statistic("grad_noise_trace");
  run.open();
  constexpr size_t kModes = 36;
  std::vector<double> curvature(kModes);
  std::vector<double> at(kModes);
  std::vector<double> velocity(kModes, 0.0);
  for (size_t i = 0; i < kModes; ++i) {
    curvature[i] = 2 * std::pow(0.85, static_cast<double>(i));  // 2 to 0.007
    at[i] = 0.4 * std::pow(curvature[i], -0.25);                // a loss of S^-1/2 or so
  }
  const double trace = kModes * options.noise * options.noise;
  // Of variance 1; which distribution does not matter.
  const auto uniform = [&] {
    return std::sqrt(12.0) * (static_cast<double>(generator()) / 4294967296.0 - 0.5);
  };
  double last_rate = -1;
  for (int step = 0; step < options.steps; ++step) {
    const double rate = options.rate * options.schedule(static_cast<double>(step) / options.steps);
    if (rate != last_rate) {
      v1::ParameterGroup group;
      group.set_learning_rate(rate);
      group.set_momentum(options.momentum);
      run.send();
      run.settings(step, options.optimizer, group);
    }
    last_rate = rate;
    double loss = kFloor;
    for (size_t i = 0; i < kModes; ++i) loss += 0.5 * curvature[i] * at[i] * at[i];
    if (step % options.every == 0) {
      run.step(step);
      run.put("loss", loss * std::exp(options.batch_noise * normal(generator)));
      run.put("learning_rate", rate);
      run.put("batch_size", kBatch);
      if (options.with_noise)
        run.put("grad_noise_trace",
                kBatch * trace * options.recorded * std::exp(0.3 * normal(generator) - 0.045));
    }
    for (size_t i = 0; i < kModes; ++i) {
      const double gradient = curvature[i] * at[i] + options.noise * uniform();
      velocity[i] = options.momentum * velocity[i] + gradient;
      at[i] -= rate * velocity[i];
    }
  }
  run.finish();
  Outcome outcome;
  outcome.finding = find(engine.findings(), "decay_gain", "run");
  outcome.gain = 0.25 * options.rate * trace / (1 - options.momentum);
  return outcome;
}

Options with_decay(const std::function<void(Options&)>& change = [](Options&) {}) {
  Options options;
  options.noise = 0.15;
  options.schedule = late_decay;
  change(options);
  return options;
}

CalibrationCase setting(const std::string& name, Expected expected,
                        const std::function<void(Options&)>& change) {
  const Options options = with_decay(change);
  CalibrationCase result;
  result.law = "decay_gain";
  result.setting = name;
  result.expected = expected;
  result.power = 0.6;
  result.run = [options](uint32_t seed) { return simulate(options, seed).finding; };
  return result;
}

const CalibrationCases kCases({
    setting("SGD in a quadratic basin, to a tenth of the rate after 70 % of the run",
            Expected::kHolds,
            [](Options& o) {
              o.steps = 8000;
              o.schedule = [](double share) { return share < 0.7 ? 1 : 0.1; };
            }),
    setting("the same with momentum 0.9", Expected::kHolds,
            [](Options& o) {
              o.steps = 8000;
              o.momentum = 0.9;
              o.rate = 0.02;
              o.schedule = [](double share) { return share < 0.7 ? 1 : 0.1; };
            }),
    setting("constant for 60 % of the run, then evenly to 0", Expected::kHolds,
            [](Options& o) {
              o.steps = 8000;
              o.noise = 0.2;
            }),
    setting("noise that is measured at a fifth of what it is", Expected::kViolated,
            [](Options& o) { o.recorded = 0.2; }),
    setting("noise that is measured at five times what it is", Expected::kViolated,
            [](Options& o) { o.recorded = 5; }),
    setting("a rate that is lowered for the last 5 % only", Expected::kSilent,
            [](Options& o) { o.schedule = [](double share) { return share < 0.95 ? 1 : 0.1; }; }),
    setting("a constant rate", Expected::kSilent,
            [](Options& o) { o.schedule = [](double) { return 1.0; }; }),
});

TEST(DecayGainTest, ForetellsTheGainBeforeTheRateIsLowered) {
  int covered = 0;
  int advised = 0;
  int as_late = 0;
  constexpr int kSeeds = 20;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    const double momentum = seed % 2 == 0 ? 0.9 : 0;
    Options options = with_decay([&](Options& o) {
      o.momentum = momentum;
      o.rate = 0.2 * (1 - momentum);
      o.schedule = [](double) { return 1.0; };
    });
    const Outcome outcome = simulate(options, seed);
    EXPECT_EQ(verdict(outcome.finding), "NOT_YET") << outcome.finding.gate;
    covered += outcome.finding.ci_low <= outcome.gain && outcome.gain <= outcome.finding.ci_high;
    advised += outcome.finding.advice.find("begin the decay") != std::string::npos;
    // Early on the loss still falls faster than a decay would bring it down.
    options.steps = 300;
    options.noise = 0.01;
    const Finding early = simulate(options, seed).finding;
    EXPECT_EQ(early.advice.find("begin the decay"), std::string::npos) << early.advice;
    as_late += early.advice.find("too early") != std::string::npos;
  }
  EXPECT_GE(covered, 17);
  EXPECT_GE(advised, 17);
  EXPECT_GE(as_late, 14);
}

TEST(DecayGainTest, SaysWhyItIsSilent) {
  Finding finding = simulate(with_decay([](Options& o) { o.optimizer = "AdamW"; }), 1).finding;
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_NE(finding.gate.find("with AdamW the noise is weighted by a preconditioner"),
            std::string::npos)
      << finding.gate;
  finding = simulate(with_decay([](Options& o) { o.with_noise = false; }), 1).finding;
  EXPECT_EQ(verdict(finding), "NOT_MEASURED") << finding.gate;
  finding = simulate(with_decay([](Options& o) { o.steps = 100; }), 1).finding;
  EXPECT_EQ(verdict(finding), "NOT_YET") << finding.gate;
  // No constant phase: a cosine from the first step on.
  finding = simulate(with_decay([](Options& o) {
                       o.schedule = [](double share) { return 0.5 + 0.5 * std::cos(3.14 * share); };
                       o.steps = 1000;
                     }),
                     1)
                .finding;
  EXPECT_NE(verdict(finding), "HOLDS");
  EXPECT_NE(verdict(finding), "VIOLATED");
}

ClosedForm floor_of(double momentum) {
  const auto at = [momentum](uint32_t seed) {
    return simulate(with_decay([&](Options& o) {
                      o.momentum = momentum;
                      o.rate = 0.2 * (1 - momentum);
                      o.schedule = [](double) { return 1.0; };
                    }),
                    seed);
  };
  return {"decay_gain",
          momentum > 0 ? "the same with momentum 0.9, eta 0.02"
                       : "loss of the noise of SGD in a quadratic basin, eta 0.2, tr Sigma/B 0.81",
          "eta tr(Sigma)/(4 B (1-mu))",
          0.25 * 0.2 * 36 * 0.15 * 0.15,
          [at](uint32_t seed) { return at(seed).finding; },
          0.1};
}

const ClosedForms kForms({floor_of(0), floor_of(0.9)});

}  // namespace
}  // namespace tycho::analyzer
