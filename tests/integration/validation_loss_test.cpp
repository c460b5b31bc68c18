// Session::validation: when it counts, and that a trace with it reads as one without.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

class ValidationLossTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(1);
  }

  void train(Session& session, int steps) {
    for (int i = 0; i < steps; ++i) {
      optimizer_.zero_grad();
      const at::Tensor loss =
          torch::mse_loss(model_->forward(torch::randn({8, 3})), torch::randn({8, 2}));
      loss.backward();
      optimizer_.step();
      session.step(loss, 8);
    }
  }
  std::map<int64_t, double> recorded() const {
    const RunContents contents(directory_);
    const auto found = contents.values.find("validation_loss");
    return found == contents.values.end() ? std::map<int64_t, double>() : found->second;
  }
  SessionOptions options() const { return SessionOptions(directory_).preset(Preset::economy); }

  torch::nn::Linear model_{3, 2};
  torch::optim::SGD optimizer_{model_->parameters(), torch::optim::SGDOptions(0.01)};
};

TEST_F(ValidationLossTest, CountsWithTheStepThatHasEndedWhateverIsObserved) {
  Session session(*model_, optimizer_, options().every("loss", 7));
  train(session, 5);
  session.validation(torch::tensor(3.5));
  train(session, 1);
  session.validation(torch::full({1, 1}, 3.25, torch::kFloat64));
  session.validation(3.0);  // evaluated twice: both are kept, the later counts
  train(session, 14);
  {
    const auto pause = session.pause();
    session.validation(2.5);
  }
  session.close();
  session.validation(1.0);  // there is no run any more
  EXPECT_EQ(recorded(), (std::map<int64_t, double>{{4, 3.5}, {5, 3.0}, {19, 2.5}}));
  EXPECT_EQ(RunContents(directory_).health.steps_seen(), 20u);
}

TEST_F(ValidationLossTest, WhatIsNotFiniteIsRecordedAndWhatIsNoScalarIsSaidOnce) {
  Session session(*model_, optimizer_, options());
  train(session, 2);
  session.validation(std::numeric_limits<double>::infinity());
  train(session, 1);
  session.validation(torch::zeros({2}));
  session.validation(at::Tensor());
  train(session, 1);
  session.validation(std::nan(""));
  session.close();
  const auto values = recorded();
  ASSERT_EQ(values.size(), 2u);
  EXPECT_TRUE(std::isinf(values.at(1)));
  EXPECT_TRUE(std::isnan(values.at(3)));
  const RunContents contents(directory_);
  ASSERT_EQ(contents.events.count("validation_loss_not_scalar"), 1u);
  EXPECT_EQ(contents.events.at("validation_loss_not_scalar").count(), 2u);
}

TEST_F(ValidationLossTest, BeforeTheFirstStepItIsSaidAndAProbeMayStillBeAdded) {
  class Ones : public Probe {
   public:
    std::string name() const override { return "ones"; }
    std::vector<v1::StatisticDefinition> statistics() const override {
      return {define_statistic("ones", "1", "1", {v1::SCOPE_RUN}, "One.", "this test")};
    }
    Needs needs() const override { return {}; }
    Finish observe(const StepView&, Transfer&) override {
      return
          [](const Arrived&, Recorder& recorder) { recorder.run("ones", 1, Recorder::kUnknown); };
    }
  };
  Session session(*model_, optimizer_, options());
  session.validation(4.0);
  session.add_probe(std::make_unique<Ones>(), 1);
  train(session, 3);
  session.close();
  const RunContents contents(directory_);
  EXPECT_EQ(contents.values.at("ones").size(), 3u);
  EXPECT_TRUE(recorded().empty());
  EXPECT_EQ(contents.events.count("validation_before_first_step"), 1u);
}

TEST_F(ValidationLossTest, AfterResumingItGoesOn) {
  {
    Session session(*model_, optimizer_, options());
    train(session, 6);
    session.validation(3.0);
  }
  Session session(*model_, optimizer_, options().resume(6));
  train(session, 6);
  std::thread([&] { session.validation(2.0); }).join();
  session.close();
  const auto values = recorded();
  EXPECT_EQ(values, (std::map<int64_t, double>{{5, 3.0}, {11, 2.0}}));
}

TEST_F(ValidationLossTest, ItIsAskedOfTheTrainerNotOfASchedule) {
  EXPECT_THROW(Session(*model_, optimizer_, options().every("validation_loss", 10)), OptionError);
}

TEST_F(ValidationLossTest, ASessionThatIsSwitchedOffTakesNone) {
  ::setenv("TYCHO_DISABLE", "1", 1);
  {
    Session session(*model_, optimizer_, options());
    session.validation(4.0);
    train(session, 2);
    session.validation(torch::tensor(3.0));
  }
  ::unsetenv("TYCHO_DISABLE");
  EXPECT_FALSE(std::filesystem::exists(directory_));
}

}  // namespace
}  // namespace tycho
