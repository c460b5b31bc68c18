// From a trainer to a trace and back: what is recorded is what happened.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"
#include "tests/support/test_device.h"

namespace tycho {
namespace {

class SessionTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(1);
  }

  SessionOptions every_step(Preset preset = Preset::economy) const {
    return SessionOptions(directory_).preset(preset).overhead_budget(std::nullopt);
  }
};

torch::nn::Sequential small_model() {
  torch::nn::Sequential model(torch::nn::Linear(5, 4), torch::nn::Tanh(), torch::nn::Linear(4, 3));
  model->to(test_device());
  return model;
}

struct Batch {
  at::Tensor data = torch::randn({8, 5}, test_device());
  at::Tensor target = torch::randint(3, {8}, torch::dtype(torch::kInt64).device(test_device()));
};

at::Tensor loss_of(torch::nn::Sequential& model, const Batch& batch) {
  return torch::cross_entropy_loss(model->forward(batch.data), batch.target);
}

template <typename Function>
std::string error_of(const Function& function) {
  try {
    function();
  } catch (const OptionError& error) {
    return error.what();
  }
  return "";
}

double sum_of_squares(const at::Tensor& tensor) {
  return tensor.detach().to(torch::kFloat64).square().sum().item<double>();
}
double sum_of_products(const at::Tensor& left, const at::Tensor& right) {
  return (left.detach().to(torch::kFloat64) * right.detach().to(torch::kFloat64))
      .sum()
      .item<double>();
}

TEST_F(SessionTest, RecordsWhatTheStepUsedAlsoWithClippingDecayAndALateScheduler) {
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.01));
  struct Expected {
    double loss, rate, weight, gradient, update, weight_gradient, weight_update, gradient_update;
  };
  std::vector<Expected> expected;
  {
    Session session(*model, optimizer, every_step());
    for (int step = 0; step < 8; ++step) {
      const Batch batch;
      optimizer.zero_grad();
      auto loss = loss_of(model, batch);
      loss.backward();
      const auto weight = model->parameters()[0];
      const auto before = weight.detach().clone();
      const auto gradient = weight.grad().clone();
      torch::nn::utils::clip_grad_norm_(model->parameters(), 0.05);
      optimizer.step();
      const auto update = weight.detach() - before;
      const double rate = 0.1 / (1 + step);
      expected.push_back({loss.item<double>(), rate, sum_of_squares(before),
                          sum_of_squares(gradient), sum_of_squares(update),
                          sum_of_products(before, gradient), sum_of_products(before, update),
                          sum_of_products(gradient, update)});
      for (auto& group : optimizer.param_groups()) {
        static_cast<torch::optim::SGDOptions&>(group.options()).lr(0.1 / (2 + step));
      }
      session.step(loss, 8);
    }
    session.close();
    session.close();
  }
  const RunContents run(directory_);
  for (int step = 0; step < 8; ++step) {
    const Expected& e = expected[step];
    EXPECT_EQ(run.at("loss", step), e.loss);
    EXPECT_EQ(run.at("learning_rate", step), e.rate);
    EXPECT_EQ(run.at("batch_size", step), 8);
    EXPECT_NEAR(run.at("weight_norm_sq#0.weight", step), e.weight, 1e-12 * e.weight);
    EXPECT_NEAR(run.at("grad_norm_sq#0.weight", step), e.gradient, 1e-12 * e.gradient) << step;
    EXPECT_NEAR(run.at("update_norm_sq#0.weight", step), e.update, 1e-6 * e.update);
    EXPECT_NEAR(run.at("weight_dot_grad#0.weight", step), e.weight_gradient, 1e-9);
    EXPECT_NEAR(run.at("weight_dot_update#0.weight", step), e.weight_update, 1e-7);
    EXPECT_NEAR(run.at("grad_dot_update#0.weight", step), e.gradient_update, 1e-7);
    const double cosine = (e.weight + e.weight_update) /
                          std::sqrt(e.weight * (e.weight + 2 * e.weight_update + e.update));
    EXPECT_NEAR(run.at("angular_update#0.weight", step), std::acos(std::min(cosine, 1.0)), 1e-6);
    double sum = 0;
    for (const char* name : {"0.weight", "0.bias", "2.weight", "2.bias"}) {
      sum += run.at(std::string("grad_norm_sq#") + name, step);
    }
    EXPECT_NEAR(run.at("grad_norm_sq", step), sum, 1e-12 * sum);
  }
  EXPECT_EQ(run.optimizer.size(), 8U);
  EXPECT_TRUE(run.events.count("session_closed"));
  EXPECT_EQ(run.health.steps_seen(), 8U);
  EXPECT_EQ(run.run.optimizer(), "SGD");
}

TEST_F(SessionTest, GradientsChangedLateAreLeftOutOnceAndRightEverAfter) {
  if (!test_device().is_cpu()) return;  // Elsewhere gradients are always copied.
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  constexpr int kFirstChange = 6;
  std::map<int, double> expected;
  {
    Session session(*model, optimizer, every_step());
    for (int step = 0; step < 12; ++step) {
      const Batch batch;
      optimizer.zero_grad();
      auto loss = loss_of(model, batch);
      loss.backward();
      const auto weight = model->parameters()[0];
      const auto before = weight.detach().clone();
      const auto gradient = weight.grad().clone();
      // As clip_grad_norm_ writes: no version counter shows it.
      if (step >= kFirstChange && step % 2 == 0) weight.grad().data().mul_(-0.5);
      optimizer.step();
      expected[step] = sum_of_products(gradient, weight.detach() - before);
      session.step(loss, 8);
    }
  }
  const RunContents run(directory_);
  const auto& series = run.values.at("grad_dot_update#0.weight");
  for (const auto& [step, value] : expected) {
    if (step == kFirstChange) {
      EXPECT_EQ(series.count(step), 0U);
    } else {
      EXPECT_NEAR(run.at("grad_dot_update#0.weight", step), value, 1e-7) << step;
    }
  }
  EXPECT_EQ(run.values.at("update_norm_sq#0.weight").size(), 12U);
  EXPECT_EQ(run.events.at("gradient_changed_before_step").step(), kFirstChange);
}

TEST_F(SessionTest, NonFiniteGradientsThatAreDroppedLateAreSaid) {
  if (!test_device().is_cpu()) return;
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, every_step());
    for (int step = 0; step < 8; ++step) {
      const Batch batch;
      optimizer.zero_grad();
      auto loss = loss_of(model, batch) * (step == 6 ? INFINITY : 1.0);
      loss.backward();
      if (step == 6) {
        for (auto& parameter : model->parameters()) parameter.grad().data().zero_();
      }
      optimizer.step();
      session.step(loss, 8);
    }
  }
  EXPECT_EQ(RunContents(directory_).events.at("non_finite_gradient").step(), 6);
}

TEST_F(SessionTest, GradientNoiseAgreesWithOneBackwardPerExample) {
  auto model = small_model();
  model->to(torch::kFloat64);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  double mean_square = 0;
  double batch_square = 0;
  {
    Session session(*model, optimizer, every_step(Preset::standard));
    Batch batch;
    batch.data = batch.data.to(torch::kFloat64);
    {
      const auto quiet = session.pause();
      for (int i = 0; i < 8; ++i) {
        auto loss = torch::cross_entropy_loss(model->forward(batch.data.slice(0, i, i + 1)),
                                              batch.target.slice(0, i, i + 1));
        for (const auto& gradient : torch::autograd::grad({loss}, model->parameters())) {
          mean_square += sum_of_squares(gradient) / 8;
        }
      }
    }
    optimizer.zero_grad();
    auto loss = loss_of(model, batch);
    loss.backward();
    for (const auto& parameter : model->parameters())
      batch_square += sum_of_squares(parameter.grad());
    optimizer.step();
    session.step(loss, 8);
  }
  const RunContents run(directory_);
  const double trace = 8.0 / 7.0 * (mean_square - batch_square);
  EXPECT_NEAR(run.at("per_example_grad_norm_sq", 0), mean_square, 1e-10 * mean_square);
  EXPECT_NEAR(run.at("grad_noise_trace", 0), trace, 1e-10 * trace);
  EXPECT_NEAR(run.at("grad_signal_sq", 0), batch_square - trace / 8, 1e-10);
}

TEST_F(SessionTest, AdamsUpdateAndEpsilonFloor) {
  auto model = small_model();
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(0.01).eps(1e-3));
  double expected_rms = 0;
  double expected_share = 0;
  {
    Session session(*model, optimizer, every_step(Preset::standard));
    at::Tensor first, second;
    for (int step = 0; step < 3; ++step) {
      const Batch batch;
      optimizer.zero_grad();
      auto loss = loss_of(model, batch);
      loss.backward();
      const auto g = model->parameters()[0].grad().to(torch::kFloat64);
      first = first.defined() ? 0.9 * first + 0.1 * g : 0.1 * g;
      second = second.defined() ? 0.999 * second + 0.001 * g * g : 0.001 * g * g;
      optimizer.step();
      session.step(loss, 8);
    }
    const auto root = (second / (1 - std::pow(0.999, 3))).sqrt();
    const auto ratio = first / (1 - std::pow(0.9, 3)) / root;
    expected_rms = std::sqrt(ratio.square().mean().item<double>());
    expected_share = root.lt(1e-2).to(torch::kFloat64).mean().item<double>();
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("adam_update_rms#0.weight", 2), expected_rms, 1e-4 * expected_rms);
  EXPECT_NEAR(run.at("epsilon_floor_share#0.weight", 2), expected_share, 1e-9);
}

TEST_F(SessionTest, ActivationsAreThoseBeforeTheNonlinearityAlsoInPlaceAndInMicrobatches) {
  torch::nn::Sequential model(torch::nn::Linear(5, 6),
                              torch::nn::ReLU(torch::nn::ReLUOptions(true)),
                              torch::nn::Linear(6, 3));
  model->to(torch::kFloat64);
  const auto hidden = model->parameters();
  {
    torch::NoGradGuard no_grad;
    hidden[1].fill_(0.1);
    hidden[1].narrow(0, 0, 2).fill_(-100);  // two units that are dead
  }
  torch::optim::SGD optimizer(model->parameters(), 0.0);
  std::vector<at::Tensor> outputs;
  std::vector<at::Tensor> gradients;
  {
    Session session(*model, optimizer, every_step(Preset::standard));
    for (int part = 0; part < 2; ++part) {
      const auto x = torch::randn({4, 5}, torch::kFloat64);
      auto y = torch::addmm(hidden[1].detach(), x, hidden[0].detach().t()).requires_grad_();
      torch::addmm(hidden[3].detach(), y.relu(), hidden[2].detach().t()).square().mean().backward();
      outputs.push_back(y.detach());
      gradients.push_back(y.grad());
      const auto loss = model->forward(x).square().mean();
      loss.backward();
      if (part == 1) {
        optimizer.step();
        session.step(loss, 8);
      }
    }
  }
  const auto h = torch::cat(outputs);
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("activation_mean@0", 0), h.mean().item<double>(), 1e-12);
  EXPECT_NEAR(run.at("activation_rms@0", 0), h.square().mean().sqrt().item<double>(), 1e-10);
  EXPECT_NEAR(run.at("activation_grad_rms@0", 0),
              torch::cat(gradients).square().mean().sqrt().item<double>(), 1e-12);
  const auto dead = std::get<0>(h.max(0)).le(0).to(torch::kFloat64).mean().item<double>();
  EXPECT_GE(dead, 2.0 / 6);
  EXPECT_DOUBLE_EQ(run.at("dead_fraction@0", 0), dead);
  EXPECT_FALSE(run.has("dead_fraction@2"));
}

TEST_F(SessionTest, ProbeLossIsTakenAfterTheUpdate) {
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  const Batch fixed;
  double after = 0;
  {
    Session session(*model, optimizer, every_step());
    session.set_probe_loss([&] { return loss_of(model, fixed); });
    const Batch batch;
    auto loss = loss_of(model, batch);
    loss.backward();
    optimizer.step();
    {
      const auto quiet = session.pause();
      after = loss_of(model, fixed).item<double>();
    }
    session.step(loss, 8);
  }
  EXPECT_EQ(RunContents(directory_).at("probe_loss", 0), after);
}

TEST_F(SessionTest, BadOptionsAreRefusedAtConstructionByName) {
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  const auto construct = [&](const SessionOptions& options) {
    return error_of([&] { Session session(*model, optimizer, options); });
  };
  EXPECT_NE(construct(every_step().every("sharpnes", 5)).find("sharpnes"), std::string::npos);
  EXPECT_NE(construct(every_step().include({"encoder.*"})).find("encoder.*"), std::string::npos);
  EXPECT_NE(construct(SessionOptions("/proc/no/such")).find("/proc/no/such"), std::string::npos);
  torch::nn::Sequential empty{torch::nn::ReLU()};
  EXPECT_NE(
      error_of([&] { Session session(*empty, optimizer, every_step()); }).find("no parameters"),
      std::string::npos);
  auto stranger = small_model();
  EXPECT_NE(
      error_of([&] { Session session(*stranger, optimizer, every_step()); }).find("optimizer"),
      std::string::npos);
}

TEST_F(SessionTest, WrongArgumentsOfStepAreSaidOnceAndTrainingGoesOn) {
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, every_step(Preset::standard));
    for (int step = 0; step < 3; ++step) {
      const Batch batch;
      optimizer.zero_grad();
      loss_of(model, batch).backward();
      optimizer.step();
      session.step(torch::ones({2}), -1);
    }
  }
  const RunContents run(directory_);
  EXPECT_FALSE(run.has("loss"));
  ASSERT_TRUE(run.events.count("loss_not_scalar"));
  EXPECT_EQ(run.events.at("loss_not_scalar").count(), 3U);
  EXPECT_TRUE(run.events.count("batch_size_not_positive"));
  EXPECT_FALSE(run.has("noise_scale"));
}

TEST_F(SessionTest, GradientsThatAreClearedTooEarlyAreRecordedAndSaidSo) {
  for (const bool in_place : {true, false}) {
    SCOPED_TRACE(in_place);
    std::filesystem::remove_all(directory_);
    auto model = small_model();
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    std::vector<double> delivered;
    {
      Session session(*model, optimizer, every_step());
      for (int step = 0; step < 2; ++step) {
        const auto loss = model->forward(torch::randn({4, 5})).square().mean();
        loss.backward();
        delivered.push_back(
            model->parameters()[0].grad().to(torch::kDouble).square().sum().item<double>());
        optimizer.step();
        for (auto& parameter : model->parameters()) {
          if (in_place) {
            parameter.mutable_grad().zero_();
          } else {
            parameter.mutable_grad() = at::Tensor();
          }
        }
        session.step(loss, 4);
      }
    }
    const RunContents run(directory_);
    EXPECT_EQ(run.events.count("gradients_cleared_before_step"), 1U);
    for (int step = 0; step < 2; ++step)
      EXPECT_NEAR(run.at("grad_norm_sq#0.weight", step), delivered[static_cast<size_t>(step)],
                  1e-9);
  }
}

TEST_F(SessionTest, HalfPrecisionIsSummedInFloat64) {
  torch::nn::Linear model(40, 30);
  model->to(torch::kBFloat16);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  double weight = 0;
  double gradient = 0;
  {
    Session session(*model, optimizer, every_step(Preset::standard));
    const auto loss = model->forward(torch::randn({8, 40}).to(torch::kBFloat16)).square().mean();
    loss.backward();
    weight = model->weight.detach().to(torch::kDouble).square().sum().item<double>();
    gradient = model->weight.grad().to(torch::kDouble).square().sum().item<double>();
    optimizer.step();
    session.step(loss, 8);
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("weight_norm_sq#weight", 0), weight, 1e-12 * weight);
  EXPECT_NEAR(run.at("grad_norm_sq#weight", 0), gradient, 1e-12 * gradient);
}

TEST_F(SessionTest, ASessionRecordsItsOwnNetworkOnlyWhenTwoMeet) {
  torch::nn::Linear generator(3, 2), critic(2, 1);
  torch::optim::SGD generator_optimizer(generator->parameters(), 0.1);
  torch::optim::SGD critic_optimizer(critic->parameters(), 0.1);
  double expected = 0;
  {
    Session first(*generator, generator_optimizer,
                  SessionOptions(directory_ + "/generator")
                      .preset(Preset::standard)
                      .overhead_budget(std::nullopt));
    Session second(*critic, critic_optimizer,
                   SessionOptions(directory_ + "/critic")
                       .preset(Preset::standard)
                       .overhead_budget(std::nullopt));
    const auto loss = critic->forward(generator->forward(torch::randn({6, 3}))).square().mean();
    loss.backward();
    expected = generator->weight.grad().to(torch::kDouble).square().sum().item<double>();
    generator_optimizer.step();
    first.step(loss, 6);
  }
  const RunContents run(directory_ + "/generator");
  EXPECT_NEAR(run.at("grad_norm_sq#weight", 0), expected, 1e-9);
  EXPECT_EQ(run.model.parameter_size(), 2);
  EXPECT_TRUE(run.has("grad_noise_trace#weight"));
  const RunContents idle(directory_ + "/critic");
  EXPECT_FALSE(idle.has("loss"));
}

TEST_F(SessionTest, NanIsRecordedAndLocated) {
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, every_step());
    for (int step = 0; step < 2; ++step) {
      Batch batch;
      if (step == 1) batch.data[0][0] = std::numeric_limits<float>::quiet_NaN();
      optimizer.zero_grad();
      auto loss = loss_of(model, batch);
      loss.backward();
      optimizer.step();
      session.step(loss, 8);
    }
  }
  const RunContents run(directory_);
  EXPECT_EQ(run.at("grad_non_finite", 0), 0);
  EXPECT_TRUE(std::isnan(run.at("loss", 1)));
  EXPECT_GT(run.at("grad_non_finite#0.weight", 1), 0);
  EXPECT_EQ(run.at("weight_non_finite#0.weight", 0), 0);
  ASSERT_TRUE(run.events.count("non_finite_gradient"));
  EXPECT_EQ(run.events.at("non_finite_gradient").step(), 1);
}

class FaultyProbe : public Probe {
 public:
  std::string name() const override { return "faulty"; }
  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic("nothing", "0", "1", {v1::SCOPE_RUN}, "Never recorded.", "test")};
  }
  Needs needs() const override { return {}; }
  Finish observe(const StepView&, Transfer&) override {
    ++calls;
    throw std::runtime_error("broken on purpose");
  }
  static int calls;
};
int FaultyProbe::calls = 0;

TEST_F(SessionTest, AFaultyProbeIsDisabledAfterThreeFaults) {
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  FaultyProbe::calls = 0;
  {
    Session session(*model, optimizer, every_step());
    session.add_probe(std::make_unique<FaultyProbe>(), 1);
    for (int step = 0; step < 6; ++step) {
      const Batch batch;
      optimizer.zero_grad();
      auto loss = loss_of(model, batch);
      loss.backward();
      optimizer.step();
      session.step(loss, 8);
    }
  }
  EXPECT_EQ(FaultyProbe::calls, 3);
  const RunContents run(directory_);
  EXPECT_TRUE(run.events.count("probe_disabled_faulty"));
  EXPECT_EQ(run.values.at("loss").size(), 6U);
}

TEST_F(SessionTest, ResumingOpensASegmentAndTheLaterRecordingCounts) {
  for (const int64_t first : {0, 3}) {
    torch::manual_seed(static_cast<uint64_t>(first));
    auto model = small_model();
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    auto options = every_step();
    if (first > 0) options.resume(first);
    Session session(*model, optimizer, options);
    for (int step = 0; step < 5; ++step) session.step(static_cast<double>(100 * first + step), 8);
  }
  const RunContents run(directory_);
  EXPECT_EQ(run.segments, 2U);
  EXPECT_EQ(run.at("loss", 2), 2);
  EXPECT_EQ(run.at("loss", 3), 300);
  EXPECT_EQ(run.at("loss", 7), 304);
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  EXPECT_NE(error_of([&] {
              Session session(*model, optimizer, every_step().exclusive());
            }).find("holds a run"),
            std::string::npos);
}

TEST_F(SessionTest, ADeletedDirectoryDoesNotStopTraining) {
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  Session session(*model, optimizer, every_step());
  for (int step = 0; step < 4; ++step) {
    if (step == 1) std::filesystem::remove_all(directory_);
    const Batch batch;
    optimizer.zero_grad();
    auto loss = loss_of(model, batch);
    loss.backward();
    optimizer.step();
    session.step(loss, 8);
  }
  session.close();
}

TEST_F(SessionTest, SwitchedOffItLeavesNothing) {
  setenv("TYCHO_DISABLE", "1", 1);
  auto model = small_model();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, SessionOptions("/proc/no/such"));
    session.step(1.0, 8);
    const auto quiet = session.pause();
  }
  unsetenv("TYCHO_DISABLE");
  EXPECT_FALSE(std::filesystem::exists(directory_));
}

}  // namespace
}  // namespace tycho
