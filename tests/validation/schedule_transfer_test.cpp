// Runs of one network under several schedules of the learning rate.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "findings.h"
#include "simulated_sweep.h"

namespace tycho::analyzer {
namespace {

constexpr double kPi = 3.14159265358979323846;

using Schedule = std::function<double(double share)>;

double constant(double) { return 1; }
double cosine(double share) { return 0.55 + 0.45 * std::cos(kPi * share); }
double step_down(double share) { return share < 0.4 ? 1 : 0.3; }
double late_decay(double share) { return share < 0.75 ? 1 : 1 - (share - 0.75) / 0.28; }

struct Options {
  Schedule schedule;
  int steps = 6000;
  double noise = 0.03;
  double annealing = 0.25;
  double late_factor = 1;  // of the loss of the last third
  double weight_decay = 0;
  double sign = 1;  // of what a fall sets free
};

/// What a fall of the rate sets free comes in two parts, one twenty times as slow: neither the
/// annealing law nor the multi-power law is exact.
RunDigest train(const std::string& name, const Options& options, uint32_t seed) {
  SweepRun run(name);
  run->add_parameter(run->add_layer("0"), "weight", {4, 4});
  for (const char* statistic : {"loss", "learning_rate"}) run->statistic(statistic);
  v1::ParameterGroup group;
  group.set_learning_rate(0.1);
  group.set_weight_decay(options.weight_decay);
  run.optimize("SGD", group);
  run.open();
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  double sum = 0;
  double before = 0;
  double fast = 0;
  double slow = 0;
  double set_free = 0;
  constexpr double kSteps = 100;
  for (int step = 0; step < options.steps; ++step) {
    const double share = static_cast<double>(step) / options.steps;
    const double rate = options.schedule(share);
    sum += rate;
    fast += 0.6 * (before - rate);
    slow += 0.4 * (before - rate);
    before = rate;
    set_free += fast / kSteps + slow / (20 * kSteps);
    fast -= fast / kSteps;
    slow -= slow / (20 * kSteps);
    const double loss =
        (1 + 20 / std::sqrt(sum + 20) - options.sign * options.annealing * set_free) *
        (share > 2.0 / 3 ? options.late_factor : 1);
    run->step(step);
    run->put("loss", loss * std::exp(options.noise * normal(generator)));
    run->put("learning_rate", 0.1 * rate);
  }
  return run.take();
}

ComparisonFinding judge(const std::vector<Options>& all, uint32_t seed) {
  std::vector<RunDigest> runs;
  for (size_t r = 0; r < all.size(); ++r)
    runs.push_back(train("r" + std::to_string(r), all[r], 100 * seed + static_cast<uint32_t>(r)));
  return whole(make_schedule_transfer()->findings(RunSet(std::move(runs), {})));
}

std::vector<Options> schedules(const std::vector<Schedule>& of) {
  std::vector<Options> result;
  for (const Schedule& schedule : of) {
    result.emplace_back();
    result.back().schedule = schedule;
  }
  return result;
}

TEST(ScheduleTransferTest, SchedulesOfOneLawForecastEachOther) {
  int holds = 0;
  constexpr uint32_t kSeeds = 6;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    const ComparisonFinding finding =
        judge(schedules({constant, cosine, step_down, late_decay}), seed);
    EXPECT_NE(verdict(finding), "VIOLATED") << finding.gate;
    holds += verdict(finding) == "HOLDS";
  }
  EXPECT_GE(holds, 4);
}

TEST(ScheduleTransferTest, ARunThatIsNotLikeTheOthersIsFound) {
  int violated = 0;
  constexpr uint32_t kSeeds = 4;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    std::vector<Options> all = schedules({constant, cosine, step_down, late_decay});
    all[3].late_factor = 1.3;
    const ComparisonFinding finding = judge(all, seed);
    EXPECT_NE(verdict(finding), "HOLDS") << finding.gate;
    violated += verdict(finding) == "VIOLATED";
  }
  EXPECT_GE(violated, 3);
}

TEST(ScheduleTransferTest, NoiseThatHidesTheScheduleLeavesNoVerdict) {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    std::vector<Options> all = schedules({constant, cosine, step_down});
    for (Options& each : all) {
      each.steps = 400;
      each.noise = 0.6;
    }
    const std::string said = verdict(judge(all, seed));
    EXPECT_NE(said, "VIOLATED");
    EXPECT_NE(said, "HOLDS");
  }
}

TEST(ScheduleTransferTest, NeedsThreeSchedulesThatDifferInNothingElse) {
  EXPECT_EQ(verdict(judge(schedules({constant, cosine}), 1)), "NOT_APPLICABLE");
  EXPECT_EQ(verdict(judge(schedules({cosine, cosine, constant}), 1)), "NOT_APPLICABLE");
  std::vector<Options> all = schedules({constant, cosine, step_down});
  all[1].weight_decay = 0.1;
  EXPECT_EQ(verdict(judge(all, 1)), "NOT_APPLICABLE");
  all[1].weight_decay = 0;
  EXPECT_NE(verdict(judge(all, 1)), "NOT_APPLICABLE");
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(std::vector<Options>&)>& change) {
  std::vector<Options> all = schedules({constant, cosine, step_down, late_decay});
  change(all);
  CalibrationCase result{"schedule_transfer", setting, expected,
                         [all](uint32_t seed) { return judge(all, seed); }};
  result.power = 0.6;
  result.runs = 100;
  return result;
}

const CalibrationCases kCases({
    rates("four schedules of one law", Expected::kHolds, [](std::vector<Options>&) {}),
    rates("one run whose loss is 30 % higher in its last third", Expected::kViolated,
          [](std::vector<Options>& all) { all[3].late_factor = 1.3; }),
    rates("400 steps with noise of 60 %", Expected::kSilent,
          [](std::vector<Options>& all) {
            for (Options& each : all) {
              each.steps = 400;
              each.noise = 0.6;
            }
          }),
    rates("a schedule with another weight decay", Expected::kSilent,
          [](std::vector<Options>& all) {
            all.pop_back();
            all[1].weight_decay = 0.1;
          }),
});

}  // namespace
}  // namespace tycho::analyzer
