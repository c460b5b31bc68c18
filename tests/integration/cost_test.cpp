// What a session says that it cost: everything from its construction to its close, and never more
// than there was.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "plugin/src/work_meter.h"
#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"
#include "tests/support/test_device.h"

namespace tycho {
namespace {

// Until so much CPU time of this process went by: on any machine, beside any other program.
void work(double seconds) {
  const double begin = process_cpu_seconds();
  while (process_cpu_seconds() - begin < seconds) {
  }
}

// An observation costs what it is told to.
class DearProbe : public Probe {
 public:
  explicit DearProbe(double cpu_seconds) : cpu_seconds_(cpu_seconds) {}
  std::string name() const override { return "dear"; }
  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic("dear", "d", "1", {v1::SCOPE_RUN}, "Never recorded.", "test")};
  }
  Needs needs() const override { return {}; }
  Finish observe(const StepView&, Transfer&) override {
    work(cpu_seconds_);
    return {};
  }

 private:
  double cpu_seconds_;
};

class CostTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(1);
    model_->to(test_device());
  }
  SessionOptions every_step(Preset preset) const {
    return SessionOptions(directory_).preset(preset).overhead_budget(std::nullopt);
  }
  void step_once(torch::optim::Optimizer* optimizer, Session* session) {
    const at::Tensor data = torch::randn({8, 5}, test_device());
    optimizer->zero_grad();
    const at::Tensor loss = model_->forward(data).square().mean();
    loss.backward();
    optimizer->step();
    session->step(loss, 8);
  }
  v1::Health health() const { return RunContents(directory_).health; }
  void expect_parts_of_the_whole(const v1::Health& found) const {
    EXPECT_GT(found.tycho_seconds(), 0);
    EXPECT_LE(found.tycho_seconds(), found.training_seconds());
    EXPECT_GT(found.tycho_cpu_seconds(), 0);
    EXPECT_LE(found.tycho_cpu_seconds(), found.process_cpu_seconds());
  }

  torch::nn::Sequential model_{torch::nn::Linear(5, 4), torch::nn::Tanh(), torch::nn::Linear(4, 3)};
};

TEST_F(CostTest, TheFirstStepIsInTheBooks) {
  torch::optim::SGD optimizer(model_->parameters(), 0.1);
  Session session(*model_, optimizer, every_step(Preset::economy));
  session.add_probe(std::make_unique<DearProbe>(0.05), 1);
  step_once(&optimizer, &session);
  session.close();
  const v1::Health found = health();
  expect_parts_of_the_whole(found);
  EXPECT_GE(found.tycho_seconds(), 0.05);
  EXPECT_GE(found.tycho_cpu_seconds(), 0.049);
  EXPECT_EQ(found.steps_seen(), 1U);
}

TEST_F(CostTest, ConstructionAndClosingAreInTheBooks) {
  const double before = process_cpu_seconds();
  const auto begin = std::chrono::steady_clock::now();
  torch::optim::SGD optimizer(model_->parameters(), 0.1);
  Session session(*model_, optimizer, every_step(Preset::economy));
  work(0.03);  // the trainer's
  session.close();
  const double cpu = process_cpu_seconds() - before;
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
  const v1::Health found = health();
  expect_parts_of_the_whole(found);
  EXPECT_LE(found.tycho_cpu_seconds(), cpu - 0.03) << "the trainer's work is not Tycho's";
  EXPECT_GE(found.process_cpu_seconds(), 0.03);
  EXPECT_LE(found.training_seconds(), wall.count());
}

TEST_F(CostTest, HooksAreChargedAlsoWhereNoBareStepTells) {
  torch::optim::SGD optimizer(model_->parameters(), 0.1);
  Session session(*model_, optimizer, every_step(Preset::standard));
  for (int step = 0; step < 10; ++step) step_once(&optimizer, &session);
  session.close();
  const v1::Health found = health();
  expect_parts_of_the_whole(found);
  EXPECT_GT(found.hook_seconds(), 0);
  EXPECT_TRUE(found.cost_is_lower_bound());
  double of_probes = 0;
  for (const v1::ProbeCost& cost : found.cost()) of_probes += cost.seconds();
  EXPECT_GE(of_probes, 0.5 * found.hook_seconds()) << "the probes that asked for them pay";
}

TEST_F(CostTest, WithBareStepsTheCostIsNoLowerBound) {
  torch::optim::SGD optimizer(model_->parameters(), 0.1);
  SessionOptions options = every_step(Preset::standard);
  for (const char* name : {"loss", "scalars", "non_finite", "noise", "distinct_examples",
                           "activations", "adam", "symmetry"}) {
    options.every(name, 4);
  }
  Session session(*model_, optimizer, options);
  for (int step = 0; step < 20; ++step) step_once(&optimizer, &session);
  session.close();
  const v1::Health found = health();
  expect_parts_of_the_whole(found);
  EXPECT_FALSE(found.cost_is_lower_bound());
}

TEST_F(CostTest, WhatTheTrainerWaitsForIsNotTychos) {
  torch::optim::SGD optimizer(model_->parameters(), 0.1);
  Session session(*model_, optimizer, every_step(Preset::standard));
  for (int step = 0; step < 5; ++step) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    step_once(&optimizer, &session);
  }
  session.close();
  const v1::Health found = health();
  expect_parts_of_the_whole(found);
  EXPECT_GE(found.training_seconds(), 0.1);
  EXPECT_LE(found.tycho_seconds(), found.training_seconds() - 0.1);
}

// A verdict must not depend on what else the machine did.
TEST_F(CostTest, AFixedScheduleObservesTheSameStepsWhateverTheyTake) {
  std::vector<std::map<std::string, std::vector<int64_t>>> steps;
  for (const double slower : {0.0, 2e-3}) {
    torch::manual_seed(1);
    torch::optim::SGD optimizer(model_->parameters(), 0.01);
    Session session(*model_, optimizer,
                    SessionOptions(directory_).schedule(Schedule::fixed).exclusive(false));
    for (int step = 0; step < 60; ++step) {
      work(slower);
      step_once(&optimizer, &session);
    }
    const std::string directory = session.directory();
    session.close();
    const RunContents run(directory);
    std::filesystem::remove_all(directory);
    auto& seen = steps.emplace_back();
    for (const char* name : {"loss", "grad_norm_sq", "grad_noise_trace", "loss_change",
                             "preconditioned_sharpness", "probe_loss", "batch_sharpness"}) {
      if (!run.has(name)) continue;
      for (const auto& [step, value] : run.values.at(name)) seen[name].push_back(step);
    }
  }
  EXPECT_EQ(steps[0], steps[1]);
  EXPECT_EQ(steps[0]["loss"].size(), 60U);
  for (const char* name : {"grad_norm_sq", "grad_noise_trace", "loss_change",
                           "preconditioned_sharpness", "probe_loss", "batch_sharpness"}) {
    const std::vector<int64_t>& each = steps[0][name];
    ASSERT_FALSE(each.empty()) << name;
    EXPECT_LT(each.front(), 10) << name;
    EXPECT_GT(each.back(), 50) << name;
    EXPECT_GE(each.size(), 12U) << name;
    EXPECT_LE(each.size(), 24U) << name << ": 12 per factor of ten";
  }
}

}  // namespace
}  // namespace tycho
