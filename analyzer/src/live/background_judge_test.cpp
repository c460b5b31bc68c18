#include "tycho/analyzer/background_judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tycho/analyzer/live_judge.h"

namespace tycho::analyzer {
namespace {

using ::testing::HasSubstr;

/// A model of one layer whose loss, and a number for each layer, are recorded.
BackgroundJudge::Segment segment() {
  BackgroundJudge::Segment segment;
  segment.run.set_run_id("live");
  segment.model.add_layer()->set_path("a");
  v1::StatisticDefinition* definition = segment.registry.add_statistic();
  definition->set_id(1);
  definition->set_name("loss");
  return segment;
}

v1::Record loss_record(int64_t step, double loss) {
  v1::Record record;
  record.set_step(step);
  v1::Column* column = record.add_column();
  column->set_statistic(1);
  column->set_scope(v1::SCOPE_RUN);
  column->add_value(loss);
  return record;
}

/// A loss that is not finite at each step of ten.
double loss_at(int64_t step) { return step % 10 == 9 ? std::nan("") : 1.0; }

void push_step(BackgroundJudge& judge, int64_t step) {
  judge.push({loss_record(step, loss_at(step)), "loss", 0});
  judge.push({trace::StepEnd{step}, "", 0});
}

std::vector<std::string> said_by_a_judge_of_this_thread(int64_t steps) {
  std::vector<std::string> lines;
  LiveJudge judge([&](const LiveFinding& finding) { lines.push_back(describe(finding)); });
  const auto all = segment();
  judge.on_segment({}, all.run, all.model, all.registry);
  for (int64_t step = 0; step < steps; ++step)
    judge.on_record("loss", loss_record(step, loss_at(step)), 0);
  judge.finish();
  return lines;
}

TEST(BackgroundJudgeTest, SaysWhatAJudgeOfTheCallersThreadSays) {
  std::vector<std::string> lines;
  BackgroundJudge judge(segment(), {});
  judge.add_listener([&](const LiveFinding& finding) { lines.push_back(describe(finding)); });
  for (int64_t step = 0; step < 500; ++step) push_step(judge, step);
  judge.close();
  EXPECT_EQ(judge.counters().steps_left_out, 0U);
  EXPECT_EQ(lines, said_by_a_judge_of_this_thread(500));
  EXPECT_GT(lines.size(), 20U);
  ASSERT_FALSE(judge.findings().empty());
  EXPECT_EQ(judge.findings().front().law, "loss_not_finite");
  EXPECT_EQ(judge.verdict("edge_of_stability"), Verdict::kNotMeasured);
  EXPECT_EQ(judge.verdict("no_such_law"), Verdict::kNotYet);
}

TEST(BackgroundJudgeTest, AListenerThatThrowsIsCountedAndTheOthersHearTheRest) {
  size_t heard = 0;
  BackgroundJudge judge(segment(), {});
  judge.add_listener([](const LiveFinding&) { throw std::runtime_error("no"); });
  judge.add_listener([](const LiveFinding&) { throw 7; });
  judge.add_listener([&](const LiveFinding&) { ++heard; });
  for (int64_t step = 0; step < 100; ++step) push_step(judge, step);
  judge.close();
  EXPECT_EQ(heard, said_by_a_judge_of_this_thread(100).size());
  EXPECT_EQ(judge.counters().listener_exceptions, 2 * heard);
  EXPECT_EQ(judge.counters().listener_exception, "no");
  EXPECT_TRUE(judge.counters().failure.empty());
}

TEST(BackgroundJudgeTest, AListenerKnowsWhatIsSaidAndMayCallEverything) {
  BackgroundJudge judge(segment(), {});
  std::atomic<int> known{0};
  judge.add_listener([&](const LiveFinding& finding) {
    EXPECT_TRUE(judge.on_its_thread());
    if (!finding.is_alarm()) return;
    for (const LiveFinding& each : judge.findings()) known += each.law == finding.law;
    (void)judge.verdict("edge_of_stability");
    (void)judge.counters();
    (void)judge.cpu_seconds();
    judge.add_listener([](const LiveFinding&) {});
    judge.push({loss_record(1000000, 1), "loss", 0});
  });
  EXPECT_FALSE(judge.on_its_thread());
  for (int64_t step = 0; step < 15; ++step) push_step(judge, step);
  judge.close();
  EXPECT_GT(known, 0);
}

TEST(BackgroundJudgeTest, AListenerMayCloseTheJudgeAndIsTheLastOneCalled) {
  std::promise<void> closed;
  int calls = 0;
  int others = 0;
  BackgroundJudge judge(segment(), {});
  judge.add_listener([&](const LiveFinding&) {
    ++calls;
    judge.close();
    closed.set_value();
  });
  judge.add_listener([&](const LiveFinding&) { ++others; });
  for (int64_t step = 0; step < 50; ++step) push_step(judge, step);
  closed.get_future().wait();
  judge.close();
  push_step(judge, 50);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(others, 0);
}

TEST(BackgroundJudgeTest, AListenerMayDestroyTheJudge) {
  std::promise<void> destroyed;
  auto judge = std::make_unique<BackgroundJudge>(segment(), BackgroundJudge::Options());
  judge->add_listener([&](const LiveFinding&) {
    judge.reset();
    destroyed.set_value();
  });
  push_step(*judge, 9);
  destroyed.get_future().wait();
  EXPECT_EQ(judge, nullptr);
}

TEST(BackgroundJudgeTest, WhatItCannotKeepUpWithIsLeftOutByWholeStepsAndCounted) {
  constexpr int64_t kSteps = 20000;
  std::promise<void> go_on;
  std::shared_future<void> gate = go_on.get_future().share();
  std::promise<void> waiting;
  std::atomic<bool> first{true};
  std::vector<int64_t> steps;
  BackgroundJudge::Options options;
  options.capacity_bytes = 10000;
  BackgroundJudge judge(segment(), options);
  judge.add_listener([&](const LiveFinding& finding) {
    if (first.exchange(false)) {
      waiting.set_value();
      gate.wait();
    }
    steps.push_back(finding.step);
  });
  push_step(judge, 9);
  waiting.get_future().wait();
  // The pushing thread would stand still here if it waited for anybody.
  for (int64_t step = 10; step < kSteps; ++step) push_step(judge, step);
  const uint64_t left_out = judge.counters().steps_left_out;
  EXPECT_GT(left_out, static_cast<uint64_t>(kSteps) - 200);
  go_on.set_value();
  // What comes when there is room again is judged.
  while (judge.counters().steps_left_out == left_out) {
    push_step(judge, kSteps + 9);
    if (judge.counters().steps_left_out == left_out) break;
    std::this_thread::yield();
  }
  judge.close();
  EXPECT_TRUE(judge.counters().failure.empty());
  ASSERT_FALSE(steps.empty());
}

TEST(BackgroundJudgeTest, CloseDoesNotWaitForEverForAListener) {
  std::promise<void> go_on;
  std::shared_future<void> gate = go_on.get_future().share();
  std::promise<void> waiting;
  auto calls = std::make_shared<std::atomic<int>>(0);
  {
    BackgroundJudge::Options options;
    options.patience = std::chrono::milliseconds(20);
    BackgroundJudge judge(segment(), options);
    judge.add_listener([gate, calls, &waiting](const LiveFinding&) {
      if ((*calls)++ == 0) waiting.set_value();
      gate.wait();
    });
    for (int64_t step = 0; step < 50; ++step) push_step(judge, step);
    waiting.get_future().wait();
    judge.close();
    EXPECT_THAT(judge.counters().failure, HasSubstr("does not return"));
  }
  EXPECT_EQ(*calls, 1);
  std::weak_ptr<std::atomic<int>> watched = calls;
  calls.reset();
  go_on.set_value();
  while (!watched.expired()) std::this_thread::yield();  // The thread ends by itself.
}

TEST(BackgroundJudgeTest, MayBeAskedFromSeveralThreads) {
  BackgroundJudge judge(segment(), {});
  std::atomic<bool> stop{false};
  std::vector<std::thread> askers;
  for (int i = 0; i < 3; ++i) {
    askers.emplace_back([&] {
      while (!stop) {
        (void)judge.findings();
        (void)judge.verdict("edge_of_stability");
        (void)judge.counters();
        (void)judge.cpu_seconds();
      }
    });
  }
  for (int64_t step = 0; step < 300; ++step) push_step(judge, step);
  std::thread closer([&] { judge.close(); });
  judge.close();
  closer.join();
  stop = true;
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(judge.findings().front().law, "loss_not_finite");
}

TEST(BackgroundJudgeTest, AModelThatChangesBeginsASegment) {
  BackgroundJudge judge(segment(), {});
  push_step(judge, 0);
  v1::ModelDescription model;
  model.add_layer()->set_path("b");
  model.add_layer()->set_path("a");
  judge.push({model, "", 0});
  std::vector<std::string> lines;
  judge.add_listener([&](const LiveFinding& finding) { lines.push_back(describe(finding)); });
  push_step(judge, 9);
  judge.close();
  EXPECT_EQ(lines.size(), 1U);
}

}  // namespace
}  // namespace tycho::analyzer
