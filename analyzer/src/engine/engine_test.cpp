#include "tycho/analyzer/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

std::vector<std::unique_ptr<Law>> no_laws() { return {}; }

/// Findings as given.
class FixedLaw : public Law {
 public:
  explicit FixedLaw(std::vector<Finding> findings) : findings_(std::move(findings)) {}
  const LawDescription& description() const override { return description_; }
  void begin(const RunContext&) override {}
  void observe(const Frame&) override {}
  std::vector<Finding> findings() const override { return findings_; }

 private:
  LawDescription description_;
  std::vector<Finding> findings_;
};

struct Seen {
  int64_t step;
  double loss;
  std::vector<double> norm;
  double learning_rate;
};

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() : engine_(no_laws()), run_(engine_) {
    engine_.add_consumer([this](const RunContext& context, const Frame& frame) {
      const ColumnValues loss = frame.column(context.column("loss", v1::SCOPE_RUN));
      const ColumnValues norm = frame.column(context.column("weight_norm_sq", v1::SCOPE_LAYER));
      Seen seen{frame.step(), loss[0], {}, std::nan("")};
      for (size_t i = 0; i < static_cast<size_t>(context.model().layer_size()); ++i) {
        seen.norm.push_back(norm[i]);
      }
      if (frame.optimizer() != nullptr) {
        seen.learning_rate = frame.optimizer()->group(0).learning_rate();
      }
      seen_.push_back(seen);
    });
    run_.add_layer("a");
    run_.add_layer("b");
    run_.statistic("loss");
    run_.statistic("weight_norm_sq");
  }

  Engine engine_;
  SimulatedRun run_;
  std::vector<Seen> seen_;
};

TEST_F(EngineTest, MessagesOfOneStepFormOneFrame) {
  run_.open();
  run_.step(0);
  run_.put("loss", 2.0);
  run_.step(0);
  run_.put("weight_norm_sq", v1::SCOPE_LAYER, {1.0, 4.0});
  run_.step(5);
  run_.put("loss", 1.0);
  run_.finish();
  ASSERT_EQ(seen_.size(), 2u);
  EXPECT_EQ(seen_[0].loss, 2.0);
  EXPECT_EQ(seen_[0].norm, (std::vector<double>{1.0, 4.0}));
  EXPECT_EQ(seen_[1].step, 5);
  EXPECT_TRUE(std::isnan(seen_[1].norm[0])) << "values of an earlier step must not linger";
  EXPECT_EQ(engine_.first_step(), 0);
  EXPECT_EQ(engine_.last_step(), 5);
  EXPECT_EQ(engine_.frames(), 2u);
}

TEST(Engine, WithoutARecordEveryLawSaysThatItDoesNotKnow) {
  Engine engine(make_laws());
  for (const bool finished : {false, true}) {
    if (finished) engine.finish();
    const std::vector<Finding> findings = engine.findings();
    EXPECT_FALSE(findings.empty());
    for (const Finding& finding : findings) {
      EXPECT_NE(finding.verdict, Verdict::kHolds) << finding.law;
      EXPECT_NE(finding.verdict, Verdict::kViolated) << finding.law;
      EXPECT_TRUE(std::isnan(finding.measured)) << finding.law;
    }
  }
}

TEST_F(EngineTest, FinishTwiceCompletesTheLastFrameOnce) {
  run_.open();
  run_.step(0);
  run_.put("loss", 2.0);
  run_.finish();
  engine_.finish();
  EXPECT_EQ(seen_.size(), 1u);
}

TEST_F(EngineTest, OfDuplicatedMessagesTheLaterCounts) {
  run_.open();
  run_.step(0);
  run_.put("loss", 2.0);
  run_.step(0);
  run_.put("loss", 3.0);
  run_.step(1);
  run_.put("loss", 1.0);
  run_.step(0);  // its frame is complete
  run_.put("loss", 7.0);
  run_.finish();
  ASSERT_EQ(seen_.size(), 2u);
  EXPECT_EQ(seen_[0].loss, 3.0);
  EXPECT_EQ(seen_[1].loss, 1.0);
  EXPECT_EQ(engine_.ignored().late, 1u);
}

TEST_F(EngineTest, ResumedSegmentIsTranslatedByName) {
  run_.open();
  run_.step(9);
  run_.put("weight_norm_sq", v1::SCOPE_LAYER, {1.0, 4.0});
  run_.send();
  SimulatedRun resumed(engine_);
  resumed.set_first_statistic_id(7);
  resumed.add_layer("new");
  resumed.add_layer("b");
  resumed.add_layer("a");
  resumed.statistic("other");
  resumed.statistic("weight_norm_sq");
  resumed.open(true);
  resumed.step(5);  // the session goes on from a checkpoint
  resumed.put("weight_norm_sq", v1::SCOPE_LAYER, {30.0, 20.0, 10.0});
  resumed.finish();
  ASSERT_EQ(seen_.size(), 2u);
  EXPECT_EQ(seen_[0].norm, (std::vector<double>{1.0, 4.0}));
  EXPECT_EQ(seen_[1].norm, (std::vector<double>{10.0, 20.0, 30.0}));
  EXPECT_EQ(engine_.context().scope_name(v1::SCOPE_LAYER, 2), "layer:new");
  EXPECT_EQ(engine_.context().registry().statistic_size(), 3);
  EXPECT_EQ(engine_.last_step(), 9);
}

TEST_F(EngineTest, ChangesSinceTheStartOfAResumedSessionAreNotMixedWithThoseSinceTheRuns) {
  const auto resume_at = [](Engine& engine, int64_t resume_step, bool measured_before) {
    std::vector<double> changes;
    engine.add_consumer([&](const RunContext& context, const Frame& frame) {
      const ColumnValues change = frame.column(context.column("change", v1::SCOPE_RUN));
      if (change.present) changes.push_back(change[0]);
    });
    for (const bool resumed : {false, true}) {
      SimulatedRun run(engine);
      run.statistic("loss");
      run.statistic("change");
      run.registry().mutable_statistic(1)->set_since_first_observation(true);
      run.run().set_resume_step(resumed ? resume_step : 0);
      run.open(resumed);
      for (int64_t step = 0; step < 3; ++step) {
        run.step((resumed ? resume_step : 0) + step);
        run.put("loss", 1);
        if (resumed || measured_before) {
          run.put("change", static_cast<double>(step + (resumed ? 100 : 0)));
        }
      }
      run.finish();
    }
    return changes;
  };
  Engine later;
  EXPECT_EQ(resume_at(later, 10, true), (std::vector<double>{0, 1, 2}));
  EXPECT_EQ(later.ignored().other_reference, 3u);
  Engine anew;
  EXPECT_EQ(resume_at(anew, 0, true), (std::vector<double>{0, 1, 2, 100, 101, 102}));
  Engine first;
  EXPECT_EQ(resume_at(first, 10, false), (std::vector<double>{100, 101, 102}));
  EXPECT_EQ(first.ignored().other_reference, 0u);
}

TEST_F(EngineTest, ChangesSinceTheModelChangedAreNotMixedWithThoseSinceTheStart) {
  for (const bool changes : {false, true}) {
    Engine engine;
    std::vector<double> seen;
    engine.add_consumer([&](const RunContext& context, const Frame& frame) {
      const ColumnValues change = frame.column(context.column("change", v1::SCOPE_RUN));
      if (change.present) seen.push_back(change[0]);
    });
    for (const bool later : {false, true}) {
      SimulatedRun run(engine);
      run.add_layer("a");
      if (later && changes) run.add_layer("b");
      run.statistic("change");
      run.registry().mutable_statistic(0)->set_since_first_observation(true);
      run.open();
      run.step(later ? 1 : 0);
      run.put("change", later ? 100 : 0);
      run.finish();
    }
    EXPECT_EQ(seen, changes ? std::vector<double>{0} : (std::vector<double>{0, 100}));
    EXPECT_EQ(engine.ignored().other_reference, changes ? 1u : 0u);
  }
}

TEST_F(EngineTest, UnusableColumnsAreCountedAndTheRestIsKept) {
  run_.open();
  v1::Record record;
  record.set_step(0);
  v1::Column* unknown = record.add_column();
  unknown->set_statistic(4000000000u);
  unknown->set_scope(v1::SCOPE_RUN);
  unknown->add_value(1);
  v1::Column* unequal = record.add_column();
  unequal->set_statistic(run_.statistic("weight_norm_sq"));
  unequal->set_scope(v1::SCOPE_LAYER);
  unequal->add_entity(0);
  v1::Column* outside = record.add_column();
  outside->set_statistic(run_.statistic("weight_norm_sq"));
  outside->set_scope(v1::SCOPE_LAYER);
  outside->add_entity(1);
  outside->add_value(2);
  outside->add_entity(99);
  outside->add_value(3);
  v1::Column* no_scope = record.add_column();
  no_scope->set_statistic(run_.statistic("loss"));
  no_scope->add_value(3);
  v1::Column* infinite = record.add_column();
  infinite->set_statistic(run_.statistic("loss"));
  infinite->set_scope(v1::SCOPE_RUN);
  infinite->add_value(INFINITY);
  engine_.on_record("p", record, 0);
  engine_.finish();
  ASSERT_EQ(seen_.size(), 1u);
  EXPECT_TRUE(std::isinf(seen_[0].loss));
  EXPECT_TRUE(std::isnan(seen_[0].norm[0]));
  EXPECT_EQ(seen_[0].norm[1], 2.0);
  EXPECT_EQ(engine_.ignored().unknown_statistic, 1u);
  EXPECT_EQ(engine_.ignored().malformed, 3u);
}

TEST_F(EngineTest, AListHasItsOwnLengthAtEachStep) {
  std::vector<std::vector<double>> lists;
  engine_.add_consumer([&](const RunContext& context, const Frame& frame) {
    const ColumnValues list = frame.column(context.column("eigenvalue", v1::SCOPE_INDEX));
    lists.emplace_back(list.value, list.value + (list.present ? list.size : 0));
  });
  run_.statistic("eigenvalue");
  run_.open();
  run_.step(0);
  run_.put("eigenvalue", v1::SCOPE_INDEX, {3.0, 2.0, 1.0});
  run_.step(1);
  run_.put("loss", 1);
  run_.step(2);
  run_.put("eigenvalue", v1::SCOPE_INDEX, {5.0});
  run_.finish();
  EXPECT_EQ(lists, (std::vector<std::vector<double>>{{3, 2, 1}, {}, {5}}));
  EXPECT_EQ(engine_.context().scope_name(v1::SCOPE_INDEX, 7), "index:7");
}

TEST_F(EngineTest, AListIsNotAsLongAsAHostileTraceSays) {
  size_t size = 0;
  engine_.add_consumer([&](const RunContext& context, const Frame& frame) {
    const ColumnValues list = frame.column(context.column("eigenvalue", v1::SCOPE_INDEX));
    size = list.size;
    EXPECT_FALSE(is_measured(list.value[0]));
    EXPECT_EQ(list[1], 2.0);
    ASSERT_NE(list.standard_error, nullptr);
    EXPECT_TRUE(std::isnan(list.standard_error[1]));
  });
  const uint32_t statistic = run_.statistic("eigenvalue");
  run_.open();
  v1::Record record;
  v1::Column* column = record.add_column();
  column->set_statistic(statistic);
  column->set_scope(v1::SCOPE_INDEX);
  column->add_entity(1);
  column->add_value(2);
  // Nothing of the second column is within bounds: its errors must be as many as the values all
  // the same.
  column = record.add_column();
  column->set_statistic(statistic);
  column->set_scope(v1::SCOPE_INDEX);
  column->add_entity(4000000000u);
  column->add_value(3);
  column->add_standard_error(1);
  engine_.on_record("p", record, 0);
  engine_.finish();
  EXPECT_EQ(size, 2u);
  EXPECT_EQ(engine_.ignored().malformed, 1u);
}

TEST_F(EngineTest, EntitiesMayComeInAnyOrder) {
  run_.open();
  v1::Record record;
  v1::Column* column = record.add_column();
  column->set_statistic(run_.statistic("weight_norm_sq"));
  column->set_scope(v1::SCOPE_LAYER);
  for (const uint32_t entity : {1u, 0u}) {
    column->add_entity(entity);
    column->add_value(10.0 * entity);
  }
  engine_.on_record("p", record, 0);
  engine_.finish();
  EXPECT_EQ(seen_[0].norm, (std::vector<double>{0.0, 10.0}));
}

TEST_F(EngineTest, RecordsBeforeAnySegmentAreIgnored) {
  v1::Record record;
  record.set_step(3);
  record.add_column()->set_scope(v1::SCOPE_RUN);
  engine_.on_record("p", record, 0);
  engine_.finish();
  EXPECT_EQ(engine_.ignored().unknown_statistic, 1u);
}

TEST_F(EngineTest, SettingsApplyFromTheirStepOn) {
  run_.open();
  v1::ParameterGroup group;
  group.set_learning_rate(0.1);
  run_.settings(0, "SGD", group);
  run_.step(0);
  run_.put("loss", 1);
  run_.send();
  group.set_learning_rate(0.2);
  run_.settings(2, "SGD", group);
  for (int step = 1; step < 4; ++step) {
    run_.step(step);
    run_.put("loss", 1);
  }
  run_.finish();
  ASSERT_EQ(seen_.size(), 4u);
  EXPECT_EQ(seen_[0].learning_rate, 0.1);
  EXPECT_EQ(seen_[1].learning_rate, 0.1);
  EXPECT_EQ(seen_[2].learning_rate, 0.2);
  EXPECT_EQ(seen_[3].learning_rate, 0.2);
}

TEST_F(EngineTest, SettingsThatFollowTheirRecordStillApply) {
  run_.open();
  run_.step(0);
  run_.put("loss", 1);
  run_.send();
  v1::ParameterGroup group;
  group.set_learning_rate(0.3);
  run_.settings(0, "SGD", group);
  run_.finish();
  ASSERT_EQ(seen_.size(), 1u);
  EXPECT_EQ(seen_[0].learning_rate, 0.3);
}

TEST_F(EngineTest, EventsAreKeptOncePerEntityWithTheLastCount) {
  run_.open();
  v1::Event event;
  event.set_code("non_finite");
  event.set_scope(v1::SCOPE_LAYER);
  event.set_entity(1);
  event.set_step(4);
  event.set_count(1);
  engine_.on_event(event, 0);
  event.set_step(8);
  event.set_count(5);
  engine_.on_event(event, 0);
  event.set_entity(0);
  engine_.on_event(event, 0);
  ASSERT_EQ(engine_.events().size(), 2u);
  EXPECT_EQ(engine_.events()[0].count(), 5u);
  EXPECT_EQ(engine_.events()[0].step(), 4) << "the first occurrence locates the fault";
}

TEST_F(EngineTest, HealthAddsUpOverSessions) {
  run_.open();
  v1::Health health;
  health.set_messages_written(10);
  v1::ProbeCost* cost = health.add_cost();
  cost->set_probe("norms");
  cost->set_seconds(1);
  engine_.on_health(health, 0);
  health.set_messages_written(30);
  engine_.on_health(health, 0);
  run_.open(true);
  health.set_messages_written(5);
  engine_.on_health(health, 0);
  EXPECT_EQ(engine_.health().messages_written(), 35u);
  ASSERT_EQ(engine_.health().cost_size(), 1);
  EXPECT_EQ(engine_.health().cost(0).seconds(), 3);
}

TEST_F(EngineTest, OfAResumedSessionALaterSegmentAddsNoHealthTwice) {
  run_.open();
  v1::Health health;
  health.set_messages_written(30);
  engine_.on_health(health, 0);
  run_.run().set_resumed(true);
  run_.run().set_resume_step(100);
  run_.open(true);
  health.set_messages_written(5);
  engine_.on_health(health, 0);
  run_.open();  // It was opened for its size, or
  run_.add_layer("c");
  run_.open();  // because the model has changed.
  health.set_messages_written(8);
  engine_.on_health(health, 0);
  EXPECT_EQ(engine_.health().messages_written(), 38u);
}

TEST_F(EngineTest, ASegmentOpenedWithinAStepDoesNotEndIt) {
  run_.open();
  run_.step(3);
  run_.put("loss", 0.5);
  run_.send();
  run_.open();
  run_.step(3);
  run_.put("weight_norm_sq", v1::SCOPE_LAYER, {4, 9});
  run_.finish();
  ASSERT_EQ(seen_.size(), 1u);
  EXPECT_EQ(seen_[0].loss, 0.5);
  EXPECT_THAT(seen_[0].norm, ::testing::ElementsAre(4, 9));
  EXPECT_EQ(engine_.ignored().late, 0u);
}

TEST_F(EngineTest, WhatFollowsTheRecordsOfAStepCountsFromTheNextOn) {
  std::vector<size_t> events;
  engine_.add_consumer(
      [&](const RunContext& context, const Frame&) { events.push_back(context.events().size()); });
  run_.open();
  v1::Event event;
  event.set_code("before");
  engine_.on_event(event, 0);
  run_.step(0);
  run_.put("loss", 1);
  run_.send();
  event.set_code("within");
  engine_.on_event(event, 0);
  run_.step(0);
  run_.put("loss", 1);
  run_.send();
  event.set_code("behind");
  engine_.on_event(event, 0);
  run_.step(1);
  run_.put("loss", 1);
  run_.finish();
  EXPECT_THAT(events, ::testing::ElementsAre(2, 3));
}

TEST_F(EngineTest, StructureIsTranslatedAndLawsAreTold) {
  run_.add_parameter(0, "weight", {2, 2});
  run_.open();
  v1::ModelStructure structure;
  structure.add_symmetry_group()->add_parameter(0);
  structure.add_edge()->set_to(77);
  engine_.on_structure(structure, 0);
  ASSERT_NE(engine_.context().structure(), nullptr);
  EXPECT_EQ(engine_.context().structure()->symmetry_group(0).parameter(0), 0u);
  EXPECT_EQ(engine_.context().structure()->edge_size(), 0) << "an edge to no known layer";
}

TEST(EngineFindingsTest, ChanceViolationsAmongManyLayersAreNotReported) {
  std::vector<Finding> findings;
  for (int layer = 0; layer < 100; ++layer) {
    Finding finding;
    finding.law = "law";
    finding.scope = "layer:" + std::to_string(layer);
    finding.p_value = (layer + 0.5) / 100;  // as uniform as chance
    finding.verdict = finding.p_value < 0.025 ? Verdict::kViolated : Verdict::kHolds;
    finding.importance = importance(finding.verdict, false);
    findings.push_back(finding);
  }
  findings[50].p_value = 1e-9;
  findings[50].verdict = Verdict::kViolated;
  findings[50].importance = importance(Verdict::kViolated, false);
  std::vector<std::unique_ptr<Law>> laws;
  laws.push_back(std::make_unique<FixedLaw>(findings));
  Engine engine(std::move(laws));
  const std::vector<Finding> result = engine.findings();
  ASSERT_EQ(result.size(), 100u);
  EXPECT_EQ(result[0].scope, "layer:50") << "sorted by importance";
  int violated = 0;
  for (const Finding& finding : result) violated += finding.verdict == Verdict::kViolated;
  EXPECT_EQ(violated, 1);
}

}  // namespace
}  // namespace tycho::analyzer
