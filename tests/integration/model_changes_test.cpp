// Parameters that are replaced, added and removed while a session watches, and weights that no
// module registers.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

namespace nn = torch::nn;
using at::Tensor;

constexpr double kRate = 0.05;

/// A layer that is pruned as users do it.
struct Prunable : nn::LinearImpl {
  using nn::LinearImpl::LinearImpl;
  void replace_weight(const Tensor& by) { parameters_["weight"] = weight = by; }
  void forget_bias() {
    parameters_.erase("bias");
    bias = torch::zeros_like(bias);
  }
};

struct Net : nn::Module {
  Net() {
    body = register_module("body", std::make_shared<Prunable>(3, 5));
    head = register_module("head", nn::Linear(5, 2));
    to(torch::kFloat64);
  }
  Tensor forward(const Tensor& x) {
    Tensor y = torch::tanh(body->forward(x));
    if (!middle.is_empty()) y = torch::tanh(middle->forward(y));
    return head->forward(y);
  }
  std::shared_ptr<Prunable> body;
  nn::Linear middle{nullptr}, head{nullptr};
};

nn::Linear linear(int64_t in, int64_t out) {
  nn::Linear made(in, out);
  made->to(torch::kFloat64);
  return made;
}

double sum_sq(const Tensor& x) { return x.detach().square().sum().item<double>(); }

/// By name; one squared norm for each step.
using Squares = std::map<std::string, std::map<int64_t, double>>;

class ModelChangesTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(2);
  }
  SessionOptions options() const {
    return SessionOptions(directory_).overhead_budget(std::nullopt);
  }

  /// Steps 0 to 5, `change` before step 2; plain SGD. Expected is what the optimizer did.
  void train(const std::function<void(Net&, torch::optim::SGD&)>& change,
             const std::function<void(SessionOptions&)>& more = {}) {
    Net net;
    torch::optim::SGD optimizer(net.parameters(), kRate);
    SessionOptions chosen = options();
    if (more) more(chosen);
    Session session(net, optimizer, chosen);
    session.set_probe_loss([&] {
      return net.forward(torch::ones({2, 3}, torch::kFloat64)).square().mean();
    });
    for (int64_t step = 0; step < 6; ++step) {
      if (step == 2) change(net, optimizer);
      const Tensor x = torch::randn({4, 3}, torch::kFloat64);
      optimizer.zero_grad();
      const Tensor loss = net.forward(x).square().sum(1).mean();
      loss.backward();
      for (const auto& item : net.named_parameters()) {
        if (item.value().grad().defined())
          gradients_[item.key()][step] = sum_sq(item.value().grad());
        total_[step] += item.value().grad().defined() ? sum_sq(item.value().grad()) : 0;
      }
      optimizer.step();
      session.step(loss, 4);
    }
  }

  /// Every value that the trace holds from step `from` on is what it should be, and none is
  /// missing.
  void expect_recorded(const RunContents& run, int64_t from, const std::string& name) {
    for (int64_t step = from; step < 6; ++step) {
      const double square = gradients_.at(name).at(step);
      EXPECT_NEAR(run.at("grad_norm_sq#" + name, step), square, 1e-9 * square) << name << step;
      EXPECT_NEAR(run.at("update_norm_sq#" + name, step), kRate * kRate * square,
                  1e-6 * kRate * kRate * square)
          << name << step;
      EXPECT_TRUE(run.values.at("per_example_grad_norm_sq#" + name).count(step)) << name << step;
    }
  }
  void expect_totals(const RunContents& run) {
    for (const int64_t step : {0, 1, 3, 4, 5}) {
      EXPECT_NEAR(run.at("grad_norm_sq", step), total_[step], 1e-9 * total_[step]) << step;
      EXPECT_TRUE(run.values.at("grad_noise_trace").count(step)) << step;
    }
    EXPECT_EQ(run.values.at("grad_norm_sq").count(2), 0u) << "old and new are mixed in it";
    for (int64_t step = 0; step < 6; ++step) EXPECT_TRUE(run.values.at("loss").count(step));
    EXPECT_TRUE(run.events.count("model_changed_in_step"));
    EXPECT_FALSE(run.events.count("session_failed"));
  }
  static void expect_none_after(const RunContents& run, const std::string& name, int64_t step) {
    for (const auto& [key, series] : run.values) {
      if (key.size() < name.size() + 1 || key.substr(key.size() - name.size() - 1) != "#" + name) {
        continue;
      }
      EXPECT_LT(series.rbegin()->first, step) << key << " is that of a ghost";
    }
  }

  Squares gradients_;
  std::map<int64_t, double> total_;
};

TEST_F(ModelChangesTest, AHeadOfAnotherSizeIsObservedInsteadOfTheOldOne) {
  train([](Net& net, torch::optim::SGD& optimizer) {
    net.head = net.replace_module("head", linear(5, 4));
    auto& held = optimizer.param_groups()[0].params();
    held[2] = net.head->weight;
    held[3] = net.head->bias;
  });
  const RunContents run(directory_);
  expect_totals(run);
  for (const char* name : {"body.weight", "body.bias", "head.weight", "head.bias"}) {
    expect_recorded(run, 3, name);
  }
  EXPECT_EQ(run.model.parameter(2).shape(0), 4);
  EXPECT_TRUE(run.events.count("parameter_replaced"));
  EXPECT_EQ(run.segments, 2u);
  EXPECT_FALSE(run.events.count("optimizer_holds_removed"));
}

TEST_F(ModelChangesTest, AParameterOfTheSameShapeTakesThePlaceOfTheOldOne) {
  train([](Net& net, torch::optim::SGD& optimizer) {
    net.body->replace_weight(torch::randn({5, 3}, torch::kFloat64).requires_grad_());
    optimizer.param_groups()[0].params()[0] = net.body->weight;
  });
  const RunContents run(directory_);
  expect_totals(run);
  expect_recorded(run, 3, "body.weight");
  EXPECT_TRUE(run.events.count("parameter_replaced"));
}

TEST_F(ModelChangesTest, LayersThatJoinAreObservedAndIdsThatMoveAreNotMixedUp) {
  train(
      [](Net& net, torch::optim::SGD& optimizer) {
        net.middle = net.register_module("middle", linear(5, 5));
        optimizer.add_param_group(torch::optim::OptimizerParamGroup(net.middle->parameters()));
      },
      [](SessionOptions& options) { options.preset(Preset::full); });
  const RunContents run(directory_);
  expect_totals(run);
  for (const char* name : {"body.weight", "head.weight", "head.bias"}) {
    expect_recorded(run, 3, name);
    for (const int64_t step : {0, 1}) {
      EXPECT_NEAR(run.at(std::string("grad_norm_sq#") + name, step), gradients_.at(name).at(step),
                  1e-9 * gradients_.at(name).at(step));
    }
  }
  expect_recorded(run, 3, "middle.weight");
  EXPECT_TRUE(run.events.count("parameter_added"));
  EXPECT_TRUE(run.has("sharpness"));
  EXPECT_FALSE(run.events.count("probe_loss_failed"));
}

TEST_F(ModelChangesTest, WhatLeavesTheModelLeavesNoGhost) {
  train([](Net& net, torch::optim::SGD& optimizer) {
    net.body->forget_bias();
    auto& held = optimizer.param_groups()[0].params();
    held.erase(held.begin() + 1);
  });
  const RunContents run(directory_);
  expect_totals(run);
  expect_none_after(run, "body.bias", 2);
  expect_recorded(run, 3, "head.bias");
  EXPECT_TRUE(run.events.count("parameter_removed"));
}

TEST_F(ModelChangesTest, AnOptimizerThatIsNotToldIsNamed) {
  train([](Net& net, torch::optim::SGD&) { net.head = net.replace_module("head", linear(5, 2)); });
  const RunContents run(directory_);
  expect_none_after(run, "nothing", 0);
  EXPECT_TRUE(run.events.count("optimizer_holds_removed"));
  ASSERT_TRUE(run.events.count("parameter_replaced"));
  EXPECT_NE(run.events.at("parameter_replaced").message().find("no optimizer"), std::string::npos);
  for (const int64_t step : {3, 4, 5}) EXPECT_EQ(run.at("update_norm_sq#head.weight", step), 0);
}

// The change comes between steps that are not observed: none is lost.
TEST_F(ModelChangesTest, NothingIsLostWhereTheChangeIsSeenInTime) {
  Net net;
  torch::optim::SGD optimizer(net.parameters(), kRate);
  double square = 0;
  {
    Session session(net, optimizer, options().every("grad_norm_sq", 4).preset(Preset::economy));
    for (int64_t step = 0; step < 9; ++step) {
      if (step == 2) {
        net.head = net.replace_module("head", linear(5, 7));
        optimizer.param_groups()[0].params()[2] = net.head->weight;
        optimizer.param_groups()[0].params()[3] = net.head->bias;
      }
      optimizer.zero_grad();
      const Tensor loss = net.forward(torch::randn({4, 3}, torch::kFloat64)).square().mean();
      loss.backward();
      if (step == 4) square = sum_sq(net.head->weight.grad());
      optimizer.step();
      session.step(loss, 4);
    }
  }
  const RunContents run(directory_);
  if (!run.events.count("model_changed_in_step")) {
    EXPECT_NEAR(run.at("grad_norm_sq#head.weight", 4), square, 1e-9 * square);
  }
  EXPECT_NEAR(run.at("grad_norm_sq#head.weight", 4), square, 1e-9 * square);
}

// As splitting and pruning points does: each tensor is replaced by a longer or shorter one.
TEST_F(ModelChangesTest, TensorsAreFollowedByTheirPlaceInTheOptimizer) {
  std::vector<Tensor> points = {torch::randn({6, 3}, torch::kFloat64).requires_grad_(),
                                torch::randn({6}, torch::kFloat64).requires_grad_()};
  torch::optim::SGD optimizer(points, kRate);
  std::map<int64_t, double> squares;
  {
    Session session(points, optimizer, options());
    for (int64_t step = 0; step < 6; ++step) {
      if (step == 2 || step == 4) {
        const auto rows = step == 2 ? torch::arange(0, 10).remainder(6) : torch::arange(0, 3);
        for (size_t i = 0; i < points.size(); ++i) {
          points[i] = points[i].detach().index_select(0, rows).requires_grad_();
          optimizer.param_groups()[0].params()[i] = points[i];
        }
      }
      optimizer.zero_grad();
      const Tensor loss = (points[0].square().sum(1) * points[1].exp()).mean();
      loss.backward();
      squares[step] = sum_sq(points[0].grad());
      optimizer.step();
      session.step(loss, 1);
    }
  }
  const RunContents run(directory_);
  for (const int64_t step : {0, 1, 3, 5}) {
    EXPECT_NEAR(run.at("grad_norm_sq#0", step), squares[step], 1e-9 * squares[step]);
    EXPECT_NEAR(run.at("update_norm_sq#0", step), kRate * kRate * squares[step],
                1e-6 * kRate * kRate * squares[step]);
  }
  for (const int64_t step : {2, 4}) EXPECT_FALSE(run.values.at("grad_norm_sq#0").count(step));
  EXPECT_EQ(run.model.parameter_size(), 2);
  EXPECT_EQ(run.model.parameter(0).shape(0), 3);
}

/// A tower of layers that somebody forgot to register.
struct Tower : nn::Module {
  explicit Tower(bool registered) {
    in = register_module("in", nn::Linear(3, 4));
    for (int i = 0; i < 3; ++i) {
      tower.emplace_back(4, 4);
      if (registered) register_module("tower" + std::to_string(i), tower.back());
    }
    out = register_module("out", nn::Linear(4, 1));
  }
  Tensor forward(Tensor x) {
    x = torch::tanh(in->forward(x));
    for (auto& each : tower) x = x + torch::tanh(each->forward(x));
    return out->forward(x);
  }
  nn::Linear in{nullptr}, out{nullptr};
  std::vector<nn::Linear> tower;
};

TEST_F(ModelChangesTest, WeightsThatNothingTrainsAreNamed) {
  for (const bool registered : {false, true}) {
    std::filesystem::remove_all(directory_);
    Tower net(registered);
    Tower critic(true);  // another network, which trains
    torch::optim::SGD optimizer(net.parameters(), kRate);
    torch::optim::SGD of_critic(critic.parameters(), kRate);
    {
      Session session(net, optimizer, options());
      for (int step = 0; step < 6; ++step) {
        const Tensor x = torch::randn({4, 3}).requires_grad_();  // as in an adversarial step
        optimizer.zero_grad();
        of_critic.zero_grad();
        const Tensor y = net.forward(x);
        const Tensor loss = (y + critic.forward(x)).square().mean();
        loss.backward();
        optimizer.step();
        of_critic.step();
        session.step(loss, 4);
      }
    }
    const RunContents run(directory_);
    ASSERT_EQ(run.events.count("weights_not_registered"), registered ? 0u : 1u);
    if (registered) continue;
    const std::string said = run.events.at("weights_not_registered").message();
    EXPECT_NE(said.find("[4, 4]"), std::string::npos) << said;
    EXPECT_NE(said.find("register_module"), std::string::npos) << said;
  }
}

TEST_F(ModelChangesTest, TensorsThatOnlyTheOptimizerHoldsAreNamed) {
  Net net;
  auto all = net.parameters();
  all.push_back(torch::ones({1}, torch::kFloat64).requires_grad_());
  torch::optim::SGD optimizer(all, kRate);
  {
    Session session(net, optimizer, options());
    const Tensor loss =
        (net.forward(torch::randn({4, 3}, torch::kFloat64)) * all.back()).square().mean();
    loss.backward();
    optimizer.step();
    session.step(loss, 4);
  }
  const RunContents run(directory_);
  ASSERT_TRUE(run.events.count("optimizer_holds_unregistered"));
  EXPECT_NE(run.events.at("optimizer_holds_unregistered").message().find("1 tensor "),
            std::string::npos);
}

}  // namespace
}  // namespace tycho
