// What trainers do to parameters, threads and optimizers while a session is attached.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

namespace nn = torch::nn;
using at::Tensor;

struct Net : nn::Module {
  Net() {
    a = register_module("a", nn::Linear(3, 5));
    b = register_module("b", nn::Linear(5, 2));
    to(torch::kFloat64);
  }
  Tensor forward(const Tensor& x) { return b->forward(torch::tanh(a->forward(x))); }
  nn::Linear a{nullptr};
  nn::Linear b{nullptr};
};

Tensor batch() { return torch::randn({4, 3}, torch::kFloat64); }
Tensor loss_of(Net& net, const Tensor& x) { return net.forward(x).square().sum(1).mean(); }
double sum_sq(const Tensor& x) { return x.detach().square().sum().item<double>(); }
double rms(const Tensor& x) { return std::sqrt(x.detach().square().mean().item<double>()); }

/// What a trace should say of one step of a Net under plain SGD.
struct Expected {
  double gradient = 0, update = 0, rms_a = 0, rms_b = 0, noise = 0;
};

class AttachmentTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(11);
  }
  SessionOptions every_step(Preset preset = Preset::standard) const {
    return SessionOptions(directory_).preset(preset).overhead_budget(std::nullopt);
  }

  static constexpr double kRate = 0.01;

  /// Trains one step. What is expected is computed while the session is paused.
  static Expected train(Net& net, torch::optim::Optimizer& optimizer, Session& session) {
    const Tensor x = batch();
    Expected expected;
    const auto parameters = net.parameters();
    {
      const auto quiet = session.pause();
      for (int64_t i = 0; i < 4; ++i) {
        const Tensor one = loss_of(net, x.narrow(0, i, 1));
        for (const Tensor& g : torch::autograd::grad({one}, parameters)) {
          expected.noise += sum_sq(g) / 4;
        }
      }
      const Tensor hidden = net.a->forward(x);
      expected.rms_a = rms(hidden);
      expected.rms_b = rms(net.b->forward(torch::tanh(hidden)));
    }
    optimizer.zero_grad();
    const Tensor loss = loss_of(net, x);
    loss.backward();
    for (const Tensor& p : parameters) expected.gradient += sum_sq(p.grad());
    expected.update = kRate * kRate * expected.gradient;
    optimizer.step();
    session.step(loss, 4);
    return expected;
  }

  static void expect(const RunContents& run, int64_t step, const Expected& expected,
                     bool layers = true) {
    EXPECT_NEAR(run.at("grad_norm_sq", step), expected.gradient, 1e-9 * expected.gradient) << step;
    EXPECT_NEAR(run.at("update_norm_sq", step), expected.update, 1e-6 * expected.update) << step;
    if (!layers) return;
    EXPECT_NEAR(run.at("activation_rms@a", step), expected.rms_a, 1e-9) << step;
    EXPECT_NEAR(run.at("activation_rms@b", step), expected.rms_b, 1e-9) << step;
    EXPECT_NEAR(run.at("per_example_grad_norm_sq", step), expected.noise, 1e-9 * expected.noise)
        << step;
  }
};

// Each of these gives some or all parameters other memory between two steps.
TEST_F(AttachmentTest, ParametersWithOtherMemoryAreObservedAsBefore) {
  const std::vector<std::function<void(const std::shared_ptr<Net>&)>> changes = {
      [](const std::shared_ptr<Net>& net) {
        const auto other = std::make_shared<Net>();
        std::stringstream saved;
        torch::save(other, saved);
        auto loaded = net;
        torch::load(loaded, saved);
      },
      [](const std::shared_ptr<Net>& net) {
        net->to(torch::kFloat32);
        net->to(torch::kFloat64);
      },
      [](const std::shared_ptr<Net>& net) {
        for (Tensor& p : net->parameters()) p.set_data(p.detach() * 2);
      },
      [](const std::shared_ptr<Net>& net) {
        const auto parameters = net->parameters();
        const Tensor flat = nn::utils::parameters_to_vector(parameters).detach() * 0.5;
        nn::utils::vector_to_parameters(flat, parameters);
      },
      // Past the version counter and without other memory.
      [](const std::shared_ptr<Net>& net) {
        for (Tensor& p : net->parameters()) p.data().clamp_(-0.2, 0.2);
      }};
  const auto net = std::make_shared<Net>();
  torch::optim::SGD optimizer(net->parameters(), kRate);
  std::vector<Expected> expected;
  {
    Session session(*net, optimizer, every_step());
    for (const auto& change : changes) {
      change(net);  // The first one before the first step.
      expected.push_back(train(*net, optimizer, session));
      expected.push_back(train(*net, optimizer, session));
    }
  }
  const RunContents run(directory_);
  for (size_t step = 0; step < expected.size(); ++step) {
    SCOPED_TRACE(step);
    const bool used = step == 2 || step == 6;  // to() and parameters_to_vector() are operators too
    expect(run, static_cast<int64_t>(step), expected[step], !used);
  }
  ASSERT_TRUE(run.events.count("weights_changed_between_steps"));
  EXPECT_EQ(run.events.at("weights_changed_between_steps").count(), changes.size());
}

TEST_F(AttachmentTest, ViewsOfOneFlatVectorAreToldApart) {
  Net net;
  const auto parameters = net.parameters();
  const Tensor flat = nn::utils::parameters_to_vector(parameters).detach().clone();
  nn::utils::vector_to_parameters(flat, parameters);
  torch::optim::SGD optimizer(net.parameters(), kRate);
  std::vector<Expected> expected;
  {
    Session session(net, optimizer, every_step());
    for (int step = 0; step < 3; ++step) expected.push_back(train(net, optimizer, session));
  }
  const RunContents run(directory_);
  for (size_t step = 0; step < expected.size(); ++step) {
    expect(run, static_cast<int64_t>(step), expected[step]);
  }
}

// A head is swapped: what was held of the weight must not reach the backward pass.
TEST_F(AttachmentTest, ShapesMayChangeAtAnyTimeWithoutAnException) {
  for (const Preset preset : {Preset::economy, Preset::full}) {
    std::filesystem::remove_all(directory_);
    Net net;
    torch::optim::SGD optimizer(net.parameters(), kRate);
    std::vector<Expected> expected;
    {
      Session session(net, optimizer, every_step(preset));
      for (int64_t step = 0; step < 6; ++step) {
        if (step % 2 == 0) {
          const int64_t outputs = 3 + step;
          net.b->weight.set_data(torch::randn({outputs, 5}, torch::kFloat64));
          net.b->bias.set_data(torch::randn({outputs}, torch::kFloat64));
          for (Tensor& p : net.parameters()) p.mutable_grad().reset();
        }
        ASSERT_NO_THROW(expected.push_back(train(net, optimizer, session))) << step;
      }
    }
    const RunContents run(directory_);
    for (size_t step = 0; step < expected.size(); ++step) {
      expect(run, static_cast<int64_t>(step), expected[step], preset == Preset::full);
    }
  }
}

TEST_F(AttachmentTest, MadeOnOneThreadSteppedOnAnotherClosedOnAThird) {
  Net net;
  torch::optim::SGD optimizer(net.parameters(), kRate);
  auto session = std::make_unique<Session>(net, optimizer, every_step());
  std::vector<Expected> expected;
  std::thread([&] {
    for (int step = 0; step < 4; ++step) expected.push_back(train(net, optimizer, *session));
  }).join();
  std::thread([&] { session.reset(); }).join();
  // Operators of the first thread, which was listened to once.
  for (int i = 0; i < 3; ++i) loss_of(net, batch()).backward();
  const RunContents run(directory_);
  for (size_t step = 0; step < expected.size(); ++step) {
    expect(run, static_cast<int64_t>(step), expected[step], step > 0);
  }
  EXPECT_TRUE(run.events.count("another_thread"));
}

TEST_F(AttachmentTest, TwoThreadsThatTrainAtOnceDoNotDisturbEachOther) {
  constexpr int kSteps = 30;
  std::vector<std::unique_ptr<Net>> nets;
  for (int i = 0; i < 4; ++i) nets.push_back(std::make_unique<Net>());
  std::vector<std::vector<Tensor>> data(4);
  for (auto& batches : data) {
    for (int i = 0; i < kSteps; ++i) batches.push_back(batch());
  }
  std::vector<std::vector<double>> gradients(4);
  const auto work = [&](size_t which, bool observed) {
    Net& net = *nets[which];
    torch::optim::SGD optimizer(net.parameters(), kRate);
    std::unique_ptr<Session> session;
    if (observed) {
      session = std::make_unique<Session>(
          net, optimizer, every_step().directory(directory_ + "/" + std::to_string(which)));
    }
    for (const Tensor& x : data[which % 2]) {
      optimizer.zero_grad();
      const Tensor loss = loss_of(net, x);
      loss.backward();
      double sum = 0;
      for (const Tensor& p : net.parameters()) sum += sum_sq(p.grad());
      gradients[which].push_back(sum);
      optimizer.step();
      if (session) session->step(loss, 4);
    }
  };
  // Networks 2 and 3 begin as 0 and 1 do and are trained alone.
  for (size_t i = 0; i < 2; ++i) {
    const torch::NoGradGuard no_grad;
    for (size_t p = 0; p < 4; ++p) {
      nets[i + 2]->parameters()[p].copy_(nets[i]->parameters()[p]);
    }
  }
  std::thread first(work, 0, true);
  std::thread second(work, 1, true);
  first.join();
  second.join();
  work(2, false);
  work(3, false);
  for (size_t i = 0; i < 2; ++i) {
    for (size_t p = 0; p < 4; ++p) {
      EXPECT_TRUE(torch::equal(nets[i]->parameters()[p], nets[i + 2]->parameters()[p]));
    }
    const RunContents run(directory_ + "/" + std::to_string(i));
    for (int step = 0; step < kSteps; ++step) {
      EXPECT_NEAR(run.at("grad_norm_sq", step), gradients[i][static_cast<size_t>(step)],
                  1e-9 * gradients[i][static_cast<size_t>(step)]);
      EXPECT_TRUE(run.has("activation_rms@a"));
    }
  }
}

// Sharpness-aware minimisation: the gradient at the perturbed weights is what the optimizer uses.
TEST_F(AttachmentTest, OfTwoBackwardPassesTheOneThatTheOptimizerUsesCounts) {
  Net net;
  torch::optim::SGD optimizer(net.parameters(), kRate);
  std::vector<double> used;
  std::vector<double> updates;
  {
    Session session(net, optimizer, every_step(Preset::economy));
    for (int step = 0; step < 5; ++step) {
      const Tensor x = batch();
      optimizer.zero_grad();
      loss_of(net, x).backward();
      std::vector<Tensor> kept;
      {
        const torch::NoGradGuard no_grad;
        for (Tensor& p : net.parameters()) {
          kept.push_back(p.detach().clone());
          p.add_(0.05 * p.grad() / p.grad().norm());
        }
      }
      optimizer.zero_grad();
      const Tensor loss = loss_of(net, x);
      loss.backward();
      double sum = 0;
      {
        const torch::NoGradGuard no_grad;
        for (size_t i = 0; i < kept.size(); ++i) {
          sum += sum_sq(net.parameters()[i].grad());
          net.parameters()[i].copy_(kept[i]);
        }
      }
      optimizer.step();
      session.step(loss, 4);
      used.push_back(sum);
    }
  }
  const RunContents run(directory_);
  EXPECT_EQ(run.values.at("grad_norm_sq#a.weight").count(0), 0U) << "at first it cannot be told";
  for (int step = 1; step < 5; ++step) {
    const double sum = used[static_cast<size_t>(step)];
    EXPECT_NEAR(run.at("grad_norm_sq", step), sum, 1e-9 * sum);
    EXPECT_NEAR(run.at("update_norm_sq", step), kRate * kRate * sum, 1e-8 * sum);
  }
}

/// An optimizer of the user's own: w -= rate sign(g).
struct SignOptions : torch::optim::OptimizerOptions {
  double rate = 0.002;
  double get_lr() const override { return rate; }
  void set_lr(const double value) override { rate = value; }
  std::unique_ptr<torch::optim::OptimizerOptions> clone() const override {
    return std::make_unique<SignOptions>(*this);
  }
};
struct Sign : torch::optim::Optimizer {
  explicit Sign(std::vector<Tensor> parameters)
      : Optimizer({torch::optim::OptimizerParamGroup(std::move(parameters))},
                  std::make_unique<SignOptions>()) {}
  Tensor step(LossClosure = nullptr) override {
    const torch::NoGradGuard no_grad;
    for (auto& group : param_groups()) {
      for (Tensor& p : group.params()) {
        if (p.grad().defined()) p.sub_(p.grad().sign() * group.options().get_lr());
      }
    }
    return {};
  }
};

TEST_F(AttachmentTest, TheLearningRateOfAnOptimizerOfTheUsersOwn) {
  Net net;
  Sign optimizer(net.parameters());
  {
    Session session(net, optimizer, every_step(Preset::economy));
    for (int step = 0; step < 2; ++step) (void)train(net, optimizer, session);
  }
  EXPECT_EQ(RunContents(directory_).at("learning_rate", 1), 0.002);
}

TEST_F(AttachmentTest, TensorsWithoutAModule) {
  std::vector<Tensor> tensors = {torch::randn({3, 2}, torch::kFloat64).requires_grad_(),
                                 torch::randn({2}, torch::kFloat64).requires_grad_()};
  torch::optim::SGD optimizer(tensors, kRate);
  double gradient = 0;
  {
    Session session(tensors, optimizer, every_step());
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      const Tensor loss = (torch::matmul(batch(), tensors[0]) + tensors[1]).square().sum(1).mean();
      loss.backward();
      gradient = sum_sq(tensors[1].grad());
      optimizer.step();
      session.step(loss, 4);
    }
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("grad_norm_sq#1", 2), gradient, 1e-9 * gradient);
  EXPECT_EQ(run.optimizer[0].group(0).parameter_size(), 2);
}

TEST_F(AttachmentTest, SeveralOptimizersAndSeveralModules) {
  Net actor;
  Net critic;
  torch::optim::SGD slow({actor.a->weight, actor.a->bias, critic.b->weight, critic.b->bias}, kRate);
  torch::optim::Adam fast({actor.b->weight, actor.b->bias, critic.a->weight, critic.a->bias}, 0.02);
  double gradient = 0;
  {
    Session session({{"actor", &actor}, {"critic", &critic}}, {&slow, &fast},
                    every_step().every("adam_update_rms", 1));
    for (int step = 0; step < 3; ++step) {
      slow.zero_grad();
      fast.zero_grad();
      const Tensor x = batch();
      const Tensor loss = loss_of(actor, x) + loss_of(critic, x);
      loss.backward();
      gradient = sum_sq(critic.a->weight.grad());
      slow.step();
      fast.step();
      session.step(loss, 4);
    }
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("grad_norm_sq#critic.a.weight", 2), gradient, 1e-9 * gradient);
  ASSERT_EQ(run.optimizer[0].group_size(), 2);
  EXPECT_EQ(run.optimizer[0].optimizer(), "SGD+Adam");
  EXPECT_EQ(run.optimizer[0].group(0).learning_rate(), kRate);
  EXPECT_EQ(run.optimizer[0].group(1).learning_rate(), 0.02);
  EXPECT_EQ(run.optimizer[0].group(1).parameter_size(), 4);
  EXPECT_TRUE(run.has("activation_rms@actor.b"));
  Net other;
  EXPECT_THROW(Session({{"a.b", &other}}, {&slow}, every_step()), OptionError);
  EXPECT_THROW(Session(other, std::vector<torch::optim::Optimizer*>{nullptr}, every_step()),
               OptionError);
}

TEST_F(AttachmentTest, ASecondLaunchGoesToANeighbour) {
  const auto launch = [&](const SessionOptions& options) {
    Net net;
    torch::optim::SGD optimizer(net.parameters(), kRate);
    Session session(net, optimizer, options);
    (void)train(net, optimizer, session);
    return session.directory();
  };
  const SessionOptions options = every_step(Preset::economy);
  EXPECT_EQ(launch(options), directory_);
  EXPECT_EQ(launch(options), directory_ + "-2");
  EXPECT_EQ(launch(SessionOptions(options).directory(directory_ + "/")), directory_ + "-3");
  EXPECT_EQ(launch(SessionOptions(options).resume(1)), directory_);
  EXPECT_EQ(RunContents(directory_).segments, 2U);
  EXPECT_THROW(launch(SessionOptions(options).exclusive()), OptionError);
  // Two at once: neither has written yet.
  const std::string fresh = directory_ + "/fresh";
  Net net;
  torch::optim::SGD optimizer(net.parameters(), kRate);
  Session first(net, optimizer, SessionOptions(options).directory(fresh));
  Session second(net, optimizer, SessionOptions(options).directory(fresh));
  EXPECT_EQ(second.directory(), fresh + "-2");
  EXPECT_THROW(Session(net, optimizer, SessionOptions(options).directory(fresh).resume(1)),
               OptionError);
  first.close();
  second.close();
  for (const char* suffix : {"-2", "-3"}) std::filesystem::remove_all(directory_ + suffix);
  EXPECT_FALSE(std::filesystem::exists(fresh + "/.tycho-lock"));
}

}  // namespace
}  // namespace tycho
