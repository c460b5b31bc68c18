// Verdicts and alarms while the run goes on: what they are, and that nothing a listener does harms
// the run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <time.h>
#include <torch/torch.h>
#include <tycho/analyzer/live_judge.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

struct Trainer {
  Trainer() { torch::manual_seed(4); }
  /// One step; the loss is multiplied by `factor`.
  void step(Session& session, double factor = 1) {
    const auto x = torch::randn({16, 3});
    optimizer.zero_grad();
    auto loss = torch::mse_loss(model->forward(x), x.sum(1, true)) * factor;
    loss.backward();
    optimizer.step();
    session.step(loss, 16);
  }
  torch::nn::Sequential model{torch::nn::Linear(3, 8), torch::nn::ReLU(), torch::nn::Linear(8, 1)};
  torch::optim::SGD optimizer{model->parameters(), torch::optim::SGDOptions(0.05)};
};

class FindingsTest : public SessionDirectory {
 protected:
  SessionOptions every_step() const {
    return SessionOptions(directory_).preset(Preset::economy).overhead_budget(std::nullopt);
  }
  SessionOptions with_curvature() const {
    return every_step().every("loss_change", 1).every("preconditioned_sharpness", 4);
  }
  std::vector<std::string> replayed() const {
    std::vector<std::string> lines;
    analyzer::LiveJudge judge([&](const Finding& f) { lines.push_back(describe(f)); });
    auto reader = trace::RunReader::open(directory_);
    EXPECT_TRUE(reader.ok() && reader.value()->read(judge).ok());
    judge.finish();
    return lines;
  }
  std::map<std::string, std::string> reported() const {
    std::map<std::string, std::string> verdicts;
    analyzer::Engine engine;
    auto reader = trace::RunReader::open(directory_);
    EXPECT_TRUE(reader.ok() && reader.value()->read(engine).ok());
    engine.finish();
    for (const auto& f : engine.findings())
      verdicts[f.law + " " + f.scope] = to_string(f.verdict) + (" " + f.gate);
    return verdicts;
  }
  static std::map<std::string, std::string> verdicts_of(Session& session) {
    std::map<std::string, std::string> verdicts;
    for (const Finding& f : session.findings()) {
      if (f.kind == Finding::Kind::kVerdict)
        verdicts[f.law + " " + f.scope] = to_string(f.verdict) + (" " + f.gate);
    }
    return verdicts;
  }
  Trainer trainer_;
};

TEST_F(FindingsTest, WhatIsSaidLiveIsReplayedReportedAndInTheTrace) {
  std::vector<std::string> said;
  Session session(*trainer_.model, trainer_.optimizer, with_curvature());
  session.on_finding([&](const Finding& finding) { said.push_back(describe(finding)); });
  for (int step = 0; step < 120; ++step) trainer_.step(session);
  session.close();
  EXPECT_THAT(said, Contains(HasSubstr("HOLDS")));
  EXPECT_EQ(said, replayed());
  EXPECT_EQ(verdicts_of(session), reported());
  EXPECT_THAT(reported().at("edge_of_stability run"),
              StartsWith(to_string(session.verdict("edge_of_stability"))));
  const RunContents contents(directory_);
  ASSERT_EQ(contents.findings.size(), said.size());
  for (size_t i = 0; i < said.size(); ++i) {
    EXPECT_THAT(said[i], HasSubstr("step " + std::to_string(contents.findings[i].step()) + ":"));
    EXPECT_THAT(said[i], HasSubstr(contents.findings[i].law()));
  }
}

TEST_F(FindingsTest, WithoutAskingThereAreNone) {
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  for (int step = 0; step < 30; ++step) trainer_.step(session);
  session.close();
  EXPECT_THAT(RunContents(directory_).findings, IsEmpty());
  EXPECT_THAT(session.findings(), IsEmpty()) << "nobody judged";
}

TEST_F(FindingsTest, ALossThatIsNotFiniteIsSaidThoughNoStepFollows) {
  std::promise<Finding> alarm;
  std::atomic<bool> said{false};
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([&](const Finding& finding) {
    if (finding.is_alarm() && finding.law == "loss_not_finite" && !said.exchange(true))
      alarm.set_value(finding);
  });
  for (int step = 0; step < 10; ++step) trainer_.step(session);
  trainer_.step(session, std::nan(""));
  const Finding finding = alarm.get_future().get();  // The session is not closed.
  EXPECT_EQ(finding.step, 10);
  EXPECT_EQ(finding.severity, Severity::kAlarm);
  EXPECT_EQ(session.findings().front().law, "loss_not_finite");
}

TEST_F(FindingsTest, WhatAListenerThrowsIsSaidAndTheRunGoesOn) {
  int heard = 0;
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([](const Finding&) { throw std::runtime_error("not this one"); });
  session.on_finding([&](const Finding&) { ++heard; });
  for (int step = 0; step < 40; ++step) trainer_.step(session);
  session.close();
  EXPECT_GT(heard, 0);
  const RunContents contents(directory_);
  EXPECT_EQ(contents.values.at("loss").size(), 40U);
  ASSERT_EQ(contents.events.count("finding_listener_threw"), 1U);
  EXPECT_THAT(contents.events.at("finding_listener_threw").message(), HasSubstr("not this one"));
}

TEST_F(FindingsTest, AListenerMayAskButNotSteer) {
  std::promise<void> called;
  std::atomic<bool> first{true};
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([&](const Finding& finding) {
    EXPECT_THAT(session.findings(), Not(IsEmpty()));
    (void)session.verdict(finding.law);
    const auto quiet = session.pause();
    session.set_loss_scale(2);
    session.step(1.0, 1);
    session.on_finding([](const Finding&) {});
    if (first.exchange(false)) called.set_value();
  });
  for (int step = 0; step < 20; ++step) trainer_.step(session);
  called.get_future().wait();
  for (int step = 20; step < 40; ++step) trainer_.step(session);
  session.close();
  const RunContents contents(directory_);
  EXPECT_EQ(contents.values.at("loss").size(), 40U) << "no step was added, none was paused";
  EXPECT_EQ(contents.events.count("called_by_listener"), 1U);
}

TEST_F(FindingsTest, CloseInAListenerHappensInTheNextStep) {
  std::promise<void> asked;
  std::atomic<bool> first{true};
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([&](const Finding&) {
    session.close();
    if (first.exchange(false)) asked.set_value();
  });
  for (int step = 0; step < 20; ++step) trainer_.step(session);
  asked.get_future().wait();
  trainer_.step(session);
  trainer_.step(session);
  const RunContents contents(directory_);
  EXPECT_LE(contents.values.at("loss").size(), 20U);
  EXPECT_EQ(contents.events.count("session_closed"), 1U);
}

TEST_F(FindingsTest, AListenerMayDestroyTheSession) {
  std::promise<void> trained;
  std::promise<void> destroyed;
  std::shared_future<void> idle = trained.get_future().share();
  std::atomic<bool> first{true};
  auto session = std::make_unique<Session>(*trainer_.model, trainer_.optimizer, every_step());
  session->on_finding([&](const Finding&) {
    if (!first.exchange(false)) return;
    idle.wait();
    session.reset();
    destroyed.set_value();
  });
  for (int step = 0; step < 20; ++step) trainer_.step(*session);
  trained.set_value();
  destroyed.get_future().wait();
  const RunContents contents(directory_);
  EXPECT_EQ(contents.values.at("loss").size(), 20U);
  EXPECT_EQ(contents.events.count("session_closed"), 1U);
}

TEST_F(FindingsTest, TheTrainerDoesNotWaitForAListenerAndTheTraceIsWhole) {
  std::promise<void> go_on;
  std::shared_future<void> gate = go_on.get_future().share();
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([gate](const Finding&) { gate.wait(); });
  // Would stand still here if it waited.
  for (int step = 0; step < 100; ++step) trainer_.step(session);
  go_on.set_value();
  session.close();
  EXPECT_EQ(RunContents(directory_).values.at("loss").size(), 100U);
  EXPECT_EQ(verdicts_of(session), reported());
}

TEST_F(FindingsTest, ClosedOnAnotherThreadItEndsThereToo) {
  int heard = 0;
  auto session = std::make_unique<Session>(*trainer_.model, trainer_.optimizer, every_step());
  session->on_finding([&](const Finding&) { ++heard; });
  for (int step = 0; step < 30; ++step) trainer_.step(*session);
  std::thread([&] { session.reset(); }).join();
  EXPECT_GT(heard, 0);
  EXPECT_EQ(RunContents(directory_).events.count("session_closed"), 1U);
}

TEST_F(FindingsTest, AskedForLateItJudgesFromThereOn) {
  Session session(*trainer_.model, trainer_.optimizer, with_curvature());
  for (int step = 0; step < 30; ++step) trainer_.step(session);
  // Before its thread has looked, or after it found nothing to look at.
  EXPECT_THAT(session.verdict("one_step_loss_change"),
              AnyOf(Verdict::kNotYet, Verdict::kNotMeasured));
  for (int step = 30; step < 130; ++step) trainer_.step(session);
  session.close();
  const auto live = verdicts_of(session);
  EXPECT_EQ(live.size(), reported().size());
  EXPECT_THAT(live.at("one_step_loss_change run"), Not(HasSubstr("NOT_MEASURED")));
}

TEST_F(FindingsTest, WhatIsNoLawIsSaid) {
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  EXPECT_EQ(session.verdict("edge_of_stabilty"), Verdict::kNotYet);
  trainer_.step(session);
  session.close();
  const RunContents contents(directory_);
  ASSERT_EQ(contents.events.count("no_such_law"), 1U);
  EXPECT_THAT(contents.events.at("no_such_law").message(), HasSubstr("edge_of_stabilty"));
}

TEST_F(FindingsTest, WithoutAPlaceForTheTraceTheRunIsJudgedAllTheSame) {
  std::atomic<bool> alarm{false};
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([&](const Finding& finding) { alarm = alarm || finding.is_alarm(); });
  std::filesystem::remove_all(directory_);
  std::ofstream(directory_) << "in the way";
  for (int step = 0; step < 5; ++step) trainer_.step(session);
  trainer_.step(session, std::nan(""));
  session.close();
  EXPECT_TRUE(alarm);
  EXPECT_TRUE(std::filesystem::is_regular_file(directory_)) << "there is no trace";
}

TEST_F(FindingsTest, AModelThatChangesIsJudgedOn) {
  std::vector<std::string> said;
  torch::nn::Sequential model(torch::nn::Linear(3, 8), torch::nn::ReLU(), torch::nn::Linear(8, 1));
  torch::optim::SGD optimizer(model->parameters(), 0.05);
  Session session(*model, optimizer, every_step());
  session.on_finding([&](const Finding& finding) { said.push_back(describe(finding)); });
  const auto step = [&] {
    const auto x = torch::randn({16, 3});
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(model->forward(x), x.sum(1, true));
    loss.backward();
    optimizer.step();
    session.step(loss, 16);
  };
  for (int i = 0; i < 40; ++i) step();
  torch::nn::Linear more(1, 1);
  model->push_back(more);
  optimizer.add_param_group(torch::optim::OptimizerParamGroup(more->parameters()));
  for (int i = 0; i < 40; ++i) step();
  session.close();
  EXPECT_EQ(RunContents(directory_).segments, 2U);
  EXPECT_EQ(said, replayed());
  EXPECT_EQ(verdicts_of(session), reported());
}

TEST_F(FindingsTest, AForkedProcessHasNone) {
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([](const Finding&) {});
  for (int step = 0; step < 10; ++step) trainer_.step(session);
  const pid_t child = fork();
  if (child == 0) {
    const bool right =
        session.findings().empty() && session.verdict("edge_of_stability") == Verdict::kNotYet;
    session.step(1.0, 1);
    session.close();
    _exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  session.close();
  EXPECT_THAT(session.findings(), Not(IsEmpty()));
}

TEST_F(FindingsTest, ItsCostIsInTheBooks) {
  constexpr double kSeconds = 0.3;
  torch::set_num_threads(1);
  std::promise<void> burnt;
  std::atomic<bool> first{true};
  Session session(*trainer_.model, trainer_.optimizer, every_step());
  session.on_finding([&](const Finding&) {
    if (!first.exchange(false)) return;
    timespec now{};
    do {
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    } while (static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) < kSeconds);
    burnt.set_value();
  });
  for (int step = 0; step < 30; ++step) trainer_.step(session);
  burnt.get_future().wait();
  session.close();
  const RunContents contents(directory_);
  EXPECT_GE(contents.health.tycho_cpu_seconds(), kSeconds);
}

}  // namespace
}  // namespace tycho
