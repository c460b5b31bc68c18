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

#include "message_log.h"
#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

/// Messages as a session sends them: settings and events of a step before its records, health now
/// and then.
class Stream {
 public:
  explicit Stream(int layers = 2) {
    run_.set_run_id("stream");
    run_.set_optimizer("SGD");
    for (int i = 0; i < layers; ++i) {
      v1::Layer* layer = model_.add_layer();
      layer->set_id(static_cast<uint32_t>(i));
      layer->set_path(std::to_string(i));
      layer->set_type("torch::nn::LinearImpl");
      v1::Parameter* parameter = model_.add_parameter();
      parameter->set_id(static_cast<uint32_t>(i));
      parameter->set_name(std::to_string(i) + ".weight");
      parameter->set_layer(static_cast<uint32_t>(i));
      parameter->set_role("weight");
      parameter->set_dtype("double");
      parameter->add_shape(4);
      parameter->add_shape(4);
      parameter->set_element_count(16);
      parameter->set_requires_grad(true);
      layer->add_parameter(parameter->id());
    }
    std::set<std::string> names = {"loss", "batch_size", "dead_fraction", "update_norm_sq"};
    for (const auto& law : make_laws()) {
      for (const std::string& name : law->description().statistics) names.insert(name);
    }
    for (const std::string& name : names) {
      v1::StatisticDefinition* definition = registry_.add_statistic();
      definition->set_id(static_cast<uint32_t>(registry_.statistic_size()));
      definition->set_name(name);
      definition->set_probe("probe");
    }
  }

  void open(trace::MessageHandler& to, bool resumed = false) {
    trace::SegmentInfo info;
    info.resumed = resumed;
    to.on_segment(info, run_, model_, registry_);
  }
  void settings(trace::MessageHandler& to, int64_t step, double learning_rate) {
    v1::OptimizerSettings settings;
    settings.set_step(step);
    settings.set_optimizer("SGD");
    v1::ParameterGroup* group = settings.add_group();
    group->set_learning_rate(learning_rate);
    for (const v1::Parameter& parameter : model_.parameter()) group->add_parameter(parameter.id());
    to.on_optimizer(settings, 0);
  }
  void event(trace::MessageHandler& to, int64_t step, v1::Event::Kind kind,
             const std::string& code) {
    v1::Event event;
    event.set_step(step);
    event.set_kind(kind);
    event.set_code(code);
    event.set_message(code + " happened");
    event.set_scope(v1::SCOPE_RUN);
    event.set_count(1);
    to.on_event(event, 0);
  }
  void health(trace::MessageHandler& to, int64_t step, uint64_t dropped = 0) {
    v1::Health health;
    health.set_step(step);
    health.set_steps_seen(static_cast<uint64_t>(step) + 1);
    health.set_messages_dropped(dropped);
    to.on_health(health, 0);
  }
  v1::Record record(int64_t step) const {
    v1::Record record;
    record.set_step(step);
    return record;
  }
  void put(v1::Record* record, const std::string& name, double value) const {
    put(record, name, v1::SCOPE_RUN, {value});
  }
  void put(v1::Record* record, const std::string& name, v1::Scope scope,
           const std::vector<double>& values) const {
    v1::Column* column = record->add_column();
    for (const v1::StatisticDefinition& definition : registry_.statistic()) {
      if (definition.name() == name) column->set_statistic(definition.id());
    }
    column->set_scope(scope);
    for (size_t i = 0; i < values.size(); ++i) {
      if (scope != v1::SCOPE_RUN) column->add_entity(static_cast<uint32_t>(i));
      column->add_value(values[i]);
    }
  }
  /// One step whose loss, and nothing else, is known.
  void loss(trace::MessageHandler& to, int64_t step, double loss) const {
    v1::Record all = record(step);
    put(&all, "loss", loss);
    to.on_record("probe", all, 0);
  }
  const v1::StatisticRegistry& registry() const { return registry_; }
  v1::RunDescription& run() { return run_; }

 private:
  v1::RunDescription run_;
  v1::ModelDescription model_;
  v1::StatisticRegistry registry_;
};

/// Every statistic that a law reads, at every scope, with what may stand in a trace in any order:
/// numbers that mean nothing together, so that verdicts are all there are and change often.
MessageLog random_run(uint64_t seed, int steps) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal;
  Stream stream(3);
  MessageLog log;
  stream.open(log);
  std::vector<double> level;
  std::vector<double> share;
  for (int i = 0; i < stream.registry().statistic_size(); ++i) {
    level.push_back(std::exp(2 * normal(random)));
    share.push_back(uniform(random) < 0.3 ? 0 : uniform(random));
  }
  const double noise = uniform(random) < 0.5 ? 0.02 : 0.5;
  int64_t step = 0;
  for (int i = 0; i < steps; ++i) {
    step += 1 + static_cast<int64_t>(4 * uniform(random));
    if (i == 0 || uniform(random) < 0.02) stream.settings(log, step, std::exp(normal(random)));
    if (uniform(random) < 0.05)
      stream.event(log, step, v1::Event::NOT_OBSERVED,
                   "code_" + std::to_string(static_cast<int>(8 * uniform(random))));
    if (i == 2 || uniform(random) < 0.01) {
      v1::ModelStructure structure;
      v1::LayerEdge* edge = structure.add_edge();
      edge->set_to(1);
      if (uniform(random) < 0.5) edge->add_via("aten::relu");
      log.on_structure(structure, 0);
    }
    for (int part = 0; part < 3; ++part) {
      v1::Record record = stream.record(step);
      for (int s = part; s < stream.registry().statistic_size(); s += 3) {
        const size_t at = static_cast<size_t>(s);
        if (uniform(random) > share[at]) continue;
        const std::string& name = stream.registry().statistic(s).name();
        const auto value = [&] {
          return uniform(random) < 0.002 ? std::nan("")
                                         : level[at] * std::exp(noise * normal(random));
        };
        stream.put(&record, name, value());
        stream.put(&record, name, v1::SCOPE_LAYER, {value(), value(), value()});
        stream.put(&record, name, v1::SCOPE_PARAMETER, {value(), value(), value()});
      }
      if (record.column_size() > 0) log.on_record("probe", record, 0);
    }
    if (uniform(random) < 0.1) stream.health(log, step, uniform(random) < 0.1 ? 3 : 0);
  }
  stream.event(log, step + 1, v1::Event::STOPPED, "session_closed");
  stream.health(log, step + 1);
  return log;
}

std::string text_of(const Finding& finding) {
  const auto number = [](double value) {
    char text[40];
    std::snprintf(text, sizeof(text), " %a", value);
    return std::string(text);
  };
  return finding.law + " " + finding.scope + " " + to_string(finding.verdict) +
         number(finding.measured) + number(finding.ci_low) + number(finding.ci_high) +
         number(finding.importance) + " " + std::to_string(finding.window_begin) + " " +
         finding.gate + " " + finding.advice;
}

std::vector<std::string> report_of(const MessageLog& log, size_t end) {
  Engine engine;
  log.replay(0, end, engine);
  engine.finish();
  std::vector<std::string> texts;
  for (const Finding& finding : engine.findings()) texts.push_back(text_of(finding));
  return texts;
}

std::vector<std::string> verdicts_of(const LiveJudge& judge) {
  std::vector<std::string> texts;
  for (const LiveFinding& finding : judge.findings()) {
    if (finding.kind == LiveFinding::Kind::kVerdict) texts.push_back(text_of(finding));
  }
  return texts;
}

std::vector<std::string> said_by(const MessageLog& log) {
  std::vector<std::string> lines;
  LiveJudge judge([&](const LiveFinding& finding) { lines.push_back(describe(finding)); });
  log.replay(0, log.size(), judge);
  judge.finish();
  return lines;
}

TEST(LiveJudgeTest, AtAnyCutTheVerdictsAreThoseOfAReportOfTheCutTrace) {
  std::set<std::string> verdicts;
  std::mt19937_64 random(7);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const MessageLog log = random_run(seed, 120);
    for (int cut = 0; cut < 10; ++cut) {
      const size_t end = 1 + random() % log.size();
      LiveJudge judge({});
      log.replay(0, end, judge);
      judge.finish();
      EXPECT_EQ(verdicts_of(judge), report_of(log, end)) << "seed " << seed << " cut " << end;
      for (const LiveFinding& finding : judge.findings())
        verdicts.insert(to_string(finding.verdict));
    }
  }
  EXPECT_EQ(verdicts.size(), 6U) << "the runs are to have verdicts of every kind";
}

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
