#include "tycho/analyzer/live_judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "sample_stream.h"
#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(LiveJudgeTest, WhileTheRunGoesOnTheVerdictsAreThoseOfAReportOfTheStepsSoFar) {
  for (uint64_t seed = 100; seed < 104; ++seed) {
    const MessageLog log = random_run(seed, 60);
    LiveJudge judge({});
    for (size_t i = 0; i < log.size(); ++i) {
      log.replay(i, i + 1, judge);
      if (!log.ends_step(i)) continue;
      judge.finish_step();
      ASSERT_EQ(verdicts_of(judge), report_of(log, i + 1)) << "seed " << seed << " message " << i;
    }
  }
}

TEST(LiveJudgeTest, WhatIsSaidDoesNotDependOnWhoAsksAndWhenAStepIsFinished) {
  size_t lines = 0;
  for (uint64_t seed = 200; seed < 220; ++seed) {
    const MessageLog log = random_run(seed, 100);
    const std::vector<std::string> plain = said_by(log);
    lines += plain.size();
    std::mt19937_64 random(seed);
    std::vector<std::string> asked;
    LiveJudge judge([&](const LiveFinding& finding) { asked.push_back(describe(finding)); });
    for (size_t i = 0; i < log.size(); ++i) {
      log.replay(i, i + 1, judge);
      if (log.ends_step(i) && random() % 4 != 0) judge.finish_step();
      if (random() % 8 == 0) (void)judge.findings();
    }
    judge.finish();
    EXPECT_EQ(asked, plain) << "seed " << seed;
  }
  EXPECT_GT(lines, 500U);
}

TEST(LiveJudgeTest, EachVerdictIsSaidAtAStepAtWhichAReportHasIt) {
  for (uint64_t seed = 300; seed < 306; ++seed) {
    const MessageLog log = random_run(seed, 80);
    std::vector<LiveFinding> said;
    LiveJudge judge([&](const LiveFinding& finding) { said.push_back(finding); });
    log.replay(0, log.size(), judge);
    for (size_t i = 0; i < log.size(); ++i) {
      if (!log.ends_step(i)) continue;
      std::vector<std::string> now;
      for (const LiveFinding& finding : said) {
        if (finding.step == log.record_step(i) && finding.kind == LiveFinding::Kind::kVerdict)
          now.push_back(text_of(finding));
      }
      if (now.empty()) continue;
      const std::vector<std::string> report = report_of(log, i + 1);
      for (const std::string& text : now) EXPECT_THAT(report, Contains(text));
    }
  }
}

TEST(LiveJudgeTest, WhatWasSaidLastIsWhatTheReportSays) {
  for (uint64_t seed = 400; seed < 410; ++seed) {
    const MessageLog log = random_run(seed, 80);
    std::map<std::string, Verdict> last;
    LiveJudge judge([&](const LiveFinding& finding) {
      if (finding.kind == LiveFinding::Kind::kVerdict) {
        const std::string key = finding.law + " " + finding.scope;
        if (last.count(key) > 0) {
          EXPECT_EQ(finding.before, last.at(key));
          EXPECT_NE(finding.verdict, last.at(key));
        } else {
          EXPECT_FALSE(finding.before.has_value());
        }
        last[key] = finding.verdict;
      }
    });
    log.replay(0, log.size(), judge);
    judge.finish();
    for (const LiveFinding& finding : judge.findings()) {
      if (finding.kind != LiveFinding::Kind::kVerdict) continue;
      const auto known = last.find(finding.law + " " + finding.scope);
      if (known == last.end()) {
        EXPECT_TRUE(finding.verdict == Verdict::kNotYet ||
                    finding.verdict == Verdict::kNotMeasured);
      } else {
        EXPECT_EQ(known->second, finding.verdict) << known->first;
      }
    }
  }
}

class LiveAlarmsTest : public ::testing::Test {
 protected:
  LiveAlarmsTest()
      : judge_([this](const LiveFinding& finding) {
          if (finding.kind != LiveFinding::Kind::kVerdict) said_.push_back(describe(finding));
        }) {
    stream_.open(judge_);
  }

  /// A loss that falls from 2 to 1, with noise.
  void train(int64_t begin, int64_t end) {
    for (int64_t step = begin; step < end; ++step) {
      stream_.loss(judge_, step,
                   1 + std::exp(-0.01 * static_cast<double>(step)) + 0.05 * normal_(random_));
      judge_.finish_step();
    }
  }

  std::mt19937_64 random_{3};
  std::normal_distribution<double> normal_;
  Stream stream_;
  std::vector<std::string> said_;
  LiveJudge judge_;
};

TEST_F(LiveAlarmsTest, NothingIsRaisedWhileTheLossFalls) {
  train(0, 300);
  EXPECT_THAT(said_, IsEmpty());
  EXPECT_FALSE(judge_.findings().front().is_alarm());
}

TEST_F(LiveAlarmsTest, ALossThatIsNotFiniteIsSaidAtItsStepAndWhenItIsOver) {
  train(0, 40);
  stream_.loss(judge_, 40, std::nan(""));
  EXPECT_THAT(said_, IsEmpty()) << "the step is not complete yet";
  judge_.finish_step();
  EXPECT_THAT(said_, ElementsAre("step 40: alarm: loss_not_finite run: The loss is not finite"));
  EXPECT_TRUE(judge_.last_findings().front().is_alarm());
  EXPECT_EQ(judge_.last_findings().front().law, "loss_not_finite");
  EXPECT_EQ(judge_.last_findings().front().window_begin, 40);
  train(41, 60);
  ASSERT_EQ(said_.size(), 2U);
  EXPECT_THAT(said_[1], HasSubstr("warning: loss_not_finite run: The loss was not finite"));
}

TEST_F(LiveAlarmsTest, OneSpikeIsNoDivergence) {
  for (int64_t at = 3; at < 300; at += 37) {
    train(at - 3, at);
    stream_.loss(judge_, at, 500);
    train(at + 1, at + 34);
  }
  EXPECT_THAT(said_, Not(Contains(HasSubstr("loss_diverged"))));
}

TEST_F(LiveAlarmsTest, ADivergenceIsSaidAfterAFewStepsAndWhenItIsOver) {
  train(0, 100);
  for (int64_t step = 100; step < 104; ++step) stream_.loss(judge_, step, 1000);
  judge_.finish_step();
  EXPECT_THAT(said_, IsEmpty());
  for (int64_t step = 104; step < 115; ++step) stream_.loss(judge_, step, 1000);
  ASSERT_EQ(said_.size(), 1U);
  EXPECT_THAT(said_[0], HasSubstr("alarm: loss_diverged run: The loss diverged"));
  EXPECT_EQ(judge_.last_findings().front().window_begin, 100);
  train(115, 600);
  EXPECT_THAT(said_, Contains(HasSubstr("over: loss_diverged run")));
}

TEST_F(LiveAlarmsTest, NumbersThatAreNotFiniteAreAWarningWhileTheLossIs) {
  train(0, 20);
  stream_.event(judge_, 20, v1::Event::NON_FINITE, "non_finite_gradient");
  train(20, 30);
  EXPECT_THAT(said_, ElementsAre("step 20: warning: not_finite run: Numbers that are not finite"));
}

TEST_F(LiveAlarmsTest, ALayerThatGoesSilentIsNamedUntilItSpeaks) {
  const auto observe = [&](int64_t begin, int64_t end, double dead) {
    for (int64_t step = begin; step < end; ++step) {
      v1::Record record = stream_.record(step);
      stream_.put(&record, "loss", 1);
      stream_.put(&record, "dead_fraction", v1::SCOPE_LAYER, {0.5, dead});
      judge_.on_record("probe", record, 0);
      judge_.finish_step();
    }
  };
  observe(0, 20, 0.99);
  observe(20, 24, 1);
  observe(24, 25, 0.5);
  EXPECT_THAT(said_, IsEmpty());
  observe(25, 40, 1);
  EXPECT_THAT(said_,
              ElementsAre("step 29: warning: layer_silent layer:1: A layer has gone silent"));
  observe(40, 41, 0.9);
  ASSERT_EQ(said_.size(), 2U);
  EXPECT_THAT(said_[1], HasSubstr("step 40: over: layer_silent layer:1"));
}

TEST_F(LiveAlarmsTest, UpdatesThatStopAreSaid) {
  const auto observe = [&](int64_t begin, int64_t end, double update) {
    for (int64_t step = begin; step < end; ++step) {
      v1::Record record = stream_.record(step);
      stream_.put(&record, "update_norm_sq", update);
      judge_.on_record("probe", record, 0);
      judge_.finish_step();
    }
  };
  observe(0, 10, 1e-300);
  observe(10, 14, 0);
  EXPECT_THAT(said_, IsEmpty());
  observe(14, 20, 0);
  EXPECT_THAT(said_,
              ElementsAre("step 14: warning: updates_stopped run: The weights do not change"));
}

TEST_F(LiveAlarmsTest, ATraceThatLosesDataIsSaid) {
  train(0, 10);
  stream_.health(judge_, 10, 0);
  train(10, 20);
  EXPECT_THAT(said_, IsEmpty());
  stream_.health(judge_, 20, 7);
  train(20, 22);
  EXPECT_THAT(said_,
              ElementsAre("step 20: warning: trace_incomplete run: The trace is losing data"));
}

TEST_F(LiveAlarmsTest, ABatchFarPastTheNoiseScaleIsSaid) {
  for (int64_t step = 0; step < 200; ++step) {
    v1::Record record = stream_.record(step);
    stream_.put(&record, "batch_size", 1000);
    stream_.put(&record, "grad_noise_trace", 10 * std::exp(0.1 * normal_(random_)));
    stream_.put(&record, "grad_signal_sq", std::exp(0.1 * normal_(random_)));
    judge_.on_record("probe", record, 0);
  }
  judge_.finish();
  EXPECT_THAT(said_, Contains(HasSubstr("warning: batch_far_past_noise_scale run")));
}

TEST_F(LiveAlarmsTest, AtTheEndTheAlarmsAreThoseOfTheReport) {
  size_t alarms = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(0, 1);
    Stream stream;
    LiveJudge judge({});
    LossCourse course;
    stream.open(judge);
    double level = 2;
    const double drift = 0.02 * normal(random);
    const double jump = uniform(random) < 0.3 ? 0.02 : 0;
    const int64_t steps = 10 + static_cast<int64_t>(400 * uniform(random));
    for (int64_t step = 0; step < steps; ++step) {
      level *= std::exp(drift + (uniform(random) < jump ? 6 * normal(random) : 0));
      const double loss =
          uniform(random) < 0.0005 ? std::nan("") : level * (1 + 0.05 * normal(random));
      stream.loss(judge, step, loss);
      course.add(step, loss);
    }
    judge.finish();
    std::set<std::string> live;
    std::set<std::string> report;
    for (const LiveFinding& finding : judge.findings()) {
      if (finding.is_alarm()) live.insert(finding.law + to_string(finding.severity) + finding.gate);
    }
    for (const LossAlarm& alarm : loss_alarms(course)) {
      if (alarm.severity == Severity::kNote) continue;
      report.insert(alarm.code + to_string(alarm.severity) + alarm.text);
    }
    EXPECT_EQ(live, report) << "seed " << seed;
    alarms += live.size();
  }
  EXPECT_GT(alarms, 10U);
}

}  // namespace
}  // namespace tycho::analyzer
