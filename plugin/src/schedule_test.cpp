#include "schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace tycho {
namespace {

std::vector<int64_t> steps_of(Scheduler scheduler, int64_t count) {
  std::vector<int64_t> steps;
  std::vector<size_t> due;
  for (int64_t step = 0; step < count; ++step) {
    scheduler.due(step, step == 0, &due);
    scheduler.take(step, due);
    if (!due.empty()) steps.push_back(step);
  }
  return steps;
}

constexpr double kBareStep = 1e-3;  // seconds

/// How often each probe is observed in a run of `count` bare steps, where an observation of probe i
/// takes costs[i] seconds.
std::vector<int> observations_of(Scheduler* scheduler, const std::vector<double>& costs,
                                 int64_t count) {
  std::vector<int> observations(costs.size());
  std::vector<size_t> due;
  for (int64_t step = 0; step < count; ++step) {
    scheduler->due(step, step == 0, &due);
    scheduler->take(step, due);
    for (const size_t probe : due) {
      ++observations[probe];
      scheduler->observed(probe, costs[probe]);
      scheduler->spent(costs[probe]);
    }
    scheduler->step_took(kBareStep);
  }
  return observations;
}

TEST(Scheduler, FixedIntervalsAreMultiples) {
  Scheduler scheduler(std::nullopt);
  ProbeSchedule schedule;
  schedule.every = 4;
  scheduler.add(schedule);
  EXPECT_EQ(steps_of(scheduler, 13), (std::vector<int64_t>{0, 4, 8, 12}));
}

TEST(Scheduler, LogSpacingGivesAboutAsManyStepsInEveryDecade) {
  Scheduler scheduler(std::nullopt);
  ProbeSchedule schedule;
  schedule.log_spaced = 5;
  scheduler.add(schedule);
  const auto steps = steps_of(scheduler, 10001);
  int in_decade[2] = {};
  for (const int64_t step : steps) {
    if (step > 100 && step <= 1000) ++in_decade[0];
    if (step > 1000 && step <= 10000) ++in_decade[1];
  }
  EXPECT_EQ(in_decade[0], 5);
  EXPECT_EQ(in_decade[1], 5);
}

TEST(Scheduler, ADearProbeWaitsUntilItsFirstObservationCanBePaidFor) {
  constexpr double kBare = 1e-3;
  Scheduler scheduler(0.02);
  scheduler.add({});
  ProbeSchedule dear;
  dear.expected_steps = 50;
  scheduler.add(dear);
  std::vector<size_t> due;
  std::vector<int64_t> taken;
  for (int64_t step = 0; step < 60000; ++step) {
    scheduler.due(step, step == 0, &due);
    scheduler.take(step, due);
    double cost = 0;
    for (const size_t probe : due) {
      const double each = probe == 0 ? 1e-6 : 50 * kBare;
      cost += each;
      scheduler.observed(probe, each);
      if (probe == 1) taken.push_back(step);
    }
    scheduler.spent(cost);
    scheduler.step_took(kBare);
  }
  ASSERT_GE(taken.size(), 5U);
  EXPECT_GE(taken.front(), 2500);  // 50 steps of 2 %
  EXPECT_LE(scheduler.spent_seconds(), 0.02 * scheduler.bare_seconds());
}

TEST(Scheduler, FixedIntervalsLeaveHalfOfTheBudgetToTheOthers) {
  constexpr double kBare = 1e-3;
  constexpr double kCheap = 20e-6;
  Scheduler scheduler(0.02);
  scheduler.add({});
  ProbeSchedule fixed;
  fixed.every = 10;  // of 5 ms: 50 % of the run
  scheduler.add(fixed);
  std::vector<size_t> due;
  double by_budget = 0;
  for (int64_t step = 0; step < 20000; ++step) {
    scheduler.due(step, step == 0, &due);
    scheduler.take(step, due);
    for (const size_t probe : due) {
      const double cost = probe == 0 ? kCheap : 5 * kBare;
      scheduler.observed(probe, cost);
      scheduler.spent(cost);
      if (probe == 0) by_budget += cost;
    }
    scheduler.step_took(kBare);
  }
  EXPECT_GT(by_budget, 0.004 * scheduler.bare_seconds());
  EXPECT_LE(by_budget, 0.0101 * scheduler.bare_seconds());
}

TEST(Scheduler, WithoutABudgetEveryStepIsDue) {
  Scheduler scheduler(std::nullopt);
  scheduler.add({});
  EXPECT_EQ(steps_of(scheduler, 5).size(), 5U);
}

// A simulated run: bare steps of 1 ms; a cheap and a dear probe; observed steps are slower outside
// too.
TEST(Scheduler, StaysInsideTheBudgetWithTheSlowingDownOfObservedSteps) {
  constexpr double kBudget = 0.02;
  constexpr double kBare = 1e-3;
  Scheduler scheduler(kBudget);
  scheduler.add({});
  scheduler.add({});
  ProbeSchedule fixed;
  fixed.every = 1000;
  scheduler.add(fixed);
  const double cost[] = {5e-6, 800e-6, 100e-6};
  double spent = 0;
  int observations[3] = {};
  std::vector<size_t> due;
  constexpr int64_t kSteps = 100000;
  for (int64_t step = 0; step < kSteps; ++step) {
    scheduler.due(step, step == 0, &due);
    scheduler.take(step, due);
    double inside = 1e-7;
    double slower = 0;
    for (const size_t probe : due) {
      inside += cost[probe];
      ++observations[probe];
      if (probe == 1) slower = 300e-6;
    }
    scheduler.step_took(kBare + slower,
                        slower > 0 ? Scheduler::Hooks::kOperators : Scheduler::Hooks::kNone);
    for (const size_t probe : due) {
      scheduler.observed(probe, cost[probe] + (probe == 1 ? scheduler.last_slowdown() : 0));
    }
    scheduler.spent(inside);
    spent += inside + slower;
  }
  EXPECT_LE(spent / (kBare * kSteps), kBudget * 1.01);
  EXPECT_GE(spent / (kBare * kSteps), kBudget * 0.6);  // and makes use of it
  EXPECT_EQ(observations[2], 100);
  EXPECT_GT(observations[0], kSteps * 9 / 10);
  EXPECT_GT(observations[1], 700);
}

// Time in hooks is known at once; what steps take longer beyond that, only from bare steps.
TEST(Scheduler, ChargesTimeInHooksAtOnceAndTheRestWhenThereAreBareSteps) {
  constexpr double kBare = 1e-3;
  constexpr double kInHooks = 500e-6;
  constexpr double kBeyond = 200e-6;
  Scheduler scheduler(std::nullopt);
  const auto hooked = [&] {
    scheduler.step_took(kBare + kInHooks + kBeyond, Scheduler::Hooks::kOperators, kInHooks);
  };
  // What the first steps take says nothing of those that follow.
  for (int i = 0; i < 2; ++i) scheduler.step_took(kBare + 1, Scheduler::Hooks::kOperators, 1);
  for (int i = 0; i < 10; ++i) hooked();
  EXPECT_NEAR(scheduler.bare_seconds(), 12 * kBare + 10 * kBeyond, 1e-12);
  EXPECT_EQ(scheduler.slowdown_seconds(), 0);
  EXPECT_FALSE(scheduler.slowdown_known());
  for (int i = 0; i < 5; ++i) scheduler.step_took(kBare);
  EXPECT_TRUE(scheduler.slowdown_known());
  EXPECT_NEAR(scheduler.slowdown_seconds(), 10 * kBeyond, 1e-12) << "of the steps before, too";
  hooked();
  EXPECT_NEAR(scheduler.slowdown_seconds(), 11 * kBeyond, 1e-12);
  EXPECT_NEAR(scheduler.last_slowdown(), kBeyond, 1e-12);
  EXPECT_NEAR(scheduler.bare_seconds(), 18 * kBare, 1e-12);
}

TEST(Scheduler, ABudgetThatAllowsEveryStepStillLeavesBareOnesToCompareWith) {
  Scheduler scheduler(0.5);
  scheduler.add({});
  std::vector<size_t> due;
  int64_t bare = 0;
  for (int64_t step = 0; step < 1000; ++step) {
    scheduler.due(step, step == 0, &due);
    scheduler.take(step, due);
    bare += due.empty();
    for (const size_t probe : due) scheduler.observed(probe, 1e-6);
    const bool observed = !due.empty();
    scheduler.step_took(1e-3, observed ? Scheduler::Hooks::kGradients : Scheduler::Hooks::kNone,
                        1e-6);
  }
  EXPECT_GE(bare, 1000 / 64);
  EXPECT_LE(bare, 1000 / 64 + 5);
  EXPECT_TRUE(scheduler.slowdown_known());
}

TEST(Scheduler, AProbeThatIsDisabledIsNeverDue) {
  Scheduler scheduler(std::nullopt);
  scheduler.add({});
  scheduler.disable(0);
  EXPECT_TRUE(steps_of(scheduler, 5).empty());
}

TEST(Scheduler, TheFirstSecondsMayCostMore) {
  Scheduler scheduler(0.01, 0.5, 10);
  const size_t probe = scheduler.add({});
  const auto spent_in = [&](int64_t begin, int64_t end) {
    double spent = 0;
    for (int64_t step = begin; step < end; ++step) {
      std::vector<size_t> due;
      scheduler.due(step, step == 0, &due);
      scheduler.take(step, due);
      scheduler.step_took(0.01);
      if (due.empty()) continue;
      spent += 0.001;
      scheduler.spent(0.001);
      scheduler.observed(probe, 0.001);
    }
    return spent;
  };
  // 10 s are 1000 steps; a probe that costs a tenth of a step is due at every one.
  EXPECT_GT(spent_in(0, 1000), 0.9);
  // Then 1 % of 100 s, less nothing: what was early is paid for.
  EXPECT_LT(spent_in(1000, 11000), 5 + 1.1);
  EXPECT_GT(spent_in(11000, 61000), 0.0);
}

/// A run of steps of 1 ms, with probes that cost this many of them. Steps of each probe.
std::vector<std::vector<int64_t>> observed_steps(Scheduler scheduler,
                                                 const std::vector<double>& costs, int64_t steps,
                                                 const Scheduler::Can& can = {}) {
  constexpr double kBare = 1e-3;
  std::vector<std::vector<int64_t>> observed(costs.size());
  for (const double cost : costs) {
    ProbeSchedule schedule;
    schedule.expected_steps = cost;
    scheduler.add(schedule);
  }
  std::vector<size_t> now;
  for (int64_t step = 0; step < steps; ++step) {
    // As a session does: what is due at a step is decided before the one before it is paid for.
    std::vector<size_t> next;
    scheduler.due(step + 1, false, &next, can);
    for (const size_t probe : now) {
      observed[probe].push_back(step);
      scheduler.observed(probe, costs[probe] * kBare);
      scheduler.spent(costs[probe] * kBare);
    }
    scheduler.step_took(kBare);
    now = next;
    scheduler.take(step + 1, now);
  }
  return observed;
}

TEST(Scheduler, CheapProbesReachTheirFloorBeforeExpensiveOnesAreRepeated) {
  const auto steps = observed_steps(Scheduler(0.3), {0.5, 4, 30, 5000}, 3000);
  const double floor = ProbeSchedule().per_decade * std::log10(3000.0);
  EXPECT_GE(static_cast<double>(steps[0].size()), floor - 2);
  EXPECT_GE(static_cast<double>(steps[1].size()), 0.8 * floor);
  EXPECT_GE(steps[2].size(), 10U) << "what is left goes to the next";
  EXPECT_TRUE(steps[3].empty()) << "costs more than the whole budget";
  EXPECT_LT(steps[2].front(), 1000) << "one observation comes early";
  for (const auto& each : steps) {
    for (size_t i = 1; i < each.size(); ++i) {
      if (each[i] > 200) EXPECT_GT(each[i] - each[i - 1], 1) << "not twice for one decision";
    }
  }
}

TEST(Scheduler, OneThatCannotBeObservedIsNotSavedFor) {
  const auto can = [](size_t probe) { return probe != 0; };
  const auto steps = observed_steps(Scheduler(0.02), {30, 40}, 30000, can);
  EXPECT_TRUE(steps[0].empty());
  EXPECT_GE(steps[1].size(), 12U);
}

TEST(Scheduler, WhatHasNoValueIsTriedEverMoreRarely) {
  Scheduler scheduler(0.5);
  ProbeSchedule schedule;
  schedule.expected_steps = 1;
  scheduler.add(schedule);
  std::vector<int64_t> tried;
  std::vector<size_t> due;
  for (int64_t step = 0; step < 20000; ++step) {
    scheduler.due(step, step == 0, &due);
    scheduler.take(step, due);
    for (const size_t probe : due) {
      tried.push_back(step);
      scheduler.recorded(probe, false);
      scheduler.observed(probe, 1e-3);
      scheduler.spent(1e-3);
    }
    scheduler.step_took(1e-3);
  }
  EXPECT_LE(tried.size(), 12U);
  ASSERT_GE(tried.size(), 6U);
  for (size_t i = 2; i < tried.size(); ++i) {
    EXPECT_GE(tried[i] - tried[i - 1], 2 * (tried[i - 1] - tried[i - 2]) - 2);
  }
}

TEST(Scheduler, AnExpensiveFirstObservationDoesNotKeepAProbeFromItsSecond) {
  for (const double expected : {0.0, 4.0}) {
    Scheduler scheduler(0.02);
    ProbeSchedule schedule;
    schedule.expected_steps = expected;
    scheduler.add(schedule);
    int64_t observations = 0;
    std::vector<size_t> due;
    for (int64_t step = 0; step < 20000; ++step) {
      scheduler.due(step, step == 0, &due);
      scheduler.take(step, due);
      for (const size_t probe : due) {
        const double cost = observations++ == 0 ? 0.1 : 0.5e-3;  // 100 steps, then half a step
        scheduler.observed(probe, cost);
        scheduler.spent(cost);
      }
      scheduler.step_took(1e-3);
    }
    EXPECT_GE(observations, 100) << expected;
  }
}

// An expensive first observation, as a proof of second derivatives is, leaves a debt of hundreds of
// steps. A report of a short run is made of what is observed meanwhile.
TEST(Scheduler, CheapProbesHaveAFloorWhateverTheOthersHaveSpent) {
  constexpr double kEarly = 0.3;
  constexpr int64_t kSteps = 1000;
  Scheduler scheduler(0.02, kEarly, 60);
  ProbeSchedule guaranteed;
  guaranteed.guaranteed = true;
  const size_t loss = scheduler.add(guaranteed);
  const size_t norms = scheduler.add(guaranteed);
  const size_t noise = scheduler.add({});
  ProbeSchedule expensive;
  expensive.expected_steps = 5;
  const size_t proof = scheduler.add(expensive);
  const std::vector<double> cost = {30e-6, 300e-6, 1e-3, 0.5};
  const std::vector<int> observations = observations_of(&scheduler, cost, kSteps);
  EXPECT_GE(observations[loss], kSteps / 10);
  EXPECT_GE(observations[norms], 60);
  EXPECT_GE(observations[noise], 24);
  EXPECT_GE(observations[proof], 1);
  const double of_cheap = scheduler.spent_seconds() - cost[proof] * observations[proof];
  EXPECT_LE(of_cheap, 0.5 * kEarly * kBareStep * kSteps + 72 * cost[norms]);
  EXPECT_GE(of_cheap, 0.19 * kEarly * kBareStep * kSteps);
}

// What an expensive probe needs is not spent on more and more of what is cheap.
TEST(Scheduler, WhatIsCheapLeavesTheBudgetToWhatIsNeeded) {
  Scheduler scheduler(0.02, 0.3, 60);
  const size_t cheap = scheduler.add({});
  ProbeSchedule expensive;
  expensive.expected_steps = 30;
  const size_t sharpness = scheduler.add(expensive);
  const std::vector<int> observations = observations_of(&scheduler, {1e-3, 30e-3}, 3000);
  EXPECT_GE(observations[sharpness], 20);  // 600 of 900 steps
  EXPECT_GE(observations[cheap], 36);
}

// A law that reads two probes at the same steps has both there, though each has a need of its own.
TEST(Scheduler, OneProbeAccompaniesAnother) {
  constexpr double kBare = 1e-3;
  Scheduler scheduler(0.02, 0.3, 60);
  ProbeSchedule first;
  first.expected_steps = 3;
  first.per_decade = 6;
  const size_t one = scheduler.add(first);
  ProbeSchedule second;
  second.expected_steps = 5;
  second.accompanies_probe = one;
  const size_t other = scheduler.add(second);
  int together = 0;
  int alone = 0;
  std::vector<size_t> due;
  for (int64_t step = 0; step < 2000; ++step) {
    scheduler.due(step, step == 0, &due);
    scheduler.take(step, due);
    for (const size_t probe : due) {
      scheduler.observed(probe, 3e-3);
      scheduler.spent(3e-3);
    }
    scheduler.step_took(kBare);
    if (due == std::vector<size_t>{one, other}) ++together;
    EXPECT_NE(due, std::vector<size_t>{one}) << step;
    if (due == std::vector<size_t>{other}) ++alone;
  }
  EXPECT_GE(together, 6);
  EXPECT_GE(alone, 6);
}

// An interval that the user gives one of them is no wish for the other.
TEST(Scheduler, NoneAccompaniesAProbeWithAnIntervalOfItsOwn) {
  Scheduler scheduler(0.02);
  ProbeSchedule first;
  first.every = 1;
  const size_t one = scheduler.add(first);
  ProbeSchedule second;
  second.expected_steps = 5;
  second.accompanies_probe = one;
  const size_t other = scheduler.add(second);
  const int observations = observations_of(&scheduler, {1e-6, 5e-3}, 1000)[other];
  EXPECT_GE(observations, 1);
  EXPECT_LE(observations, 6);  // 4 are inside the budget
}

// Of two that cost the same, the one that more laws read comes first.
TEST(Scheduler, WhatMoreLawsReadComesFirst) {
  Scheduler scheduler(0.02);
  ProbeSchedule schedule;
  schedule.expected_steps = 30;
  const size_t one = scheduler.add(schedule);
  schedule.laws = 2;
  const size_t other = scheduler.add(schedule);
  const std::vector<int> observations = observations_of(&scheduler, {30e-3, 30e-3}, 12000);
  EXPECT_GE(observations[one], 1);
  EXPECT_GE(observations[other], 2 * observations[one]);
}

// In a run that can pay for 60 steps' worth of observations, one that costs 40 is not taken before
// a cheaper one has what its law needs; in a long run it is.
TEST(Scheduler, AnExpensiveFirstObservationComesBehindWhatCheaperOnesNeed) {
  for (const int steps : {3000, 300000}) {
    Scheduler scheduler(0.02);
    ProbeSchedule schedule;
    schedule.expected_steps = 2;
    const size_t cheaper = scheduler.add(schedule);
    schedule.expected_steps = 12;
    const size_t expensive = scheduler.add(schedule);
    const std::vector<int> observations = observations_of(&scheduler, {2e-3, 12e-3}, steps);
    EXPECT_GE(observations[cheaper], steps == 3000 ? 24 : 50) << steps;
    if (steps == 3000) {
      EXPECT_EQ(observations[expensive], 0);
    } else {
      EXPECT_GE(observations[expensive], 20);
    }
  }
}

TEST(Scheduler, AGuaranteedProbeIsObservedHoweverExpensiveItIs) {
  Scheduler scheduler(0.02);
  ProbeSchedule guaranteed;
  guaranteed.guaranteed = true;
  scheduler.add(guaranteed);
  std::vector<int64_t> steps;
  std::vector<size_t> due;
  for (int64_t step = 1000; step < 101000; ++step) {  // a resumed run
    scheduler.due(step, step == 1000, &due);
    scheduler.take(step, due);
    for (const size_t probe : due) {
      steps.push_back(step);
      scheduler.observed(probe, 1);
      scheduler.spent(1);
    }
    scheduler.step_took(1e-3);
  }
  EXPECT_GE(steps.size(), 100U);
  EXPECT_LE(steps.size(), 130U);
}

}  // namespace
}  // namespace tycho
