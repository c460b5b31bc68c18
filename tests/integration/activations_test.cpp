// What counts as a layer's output, against the activations themselves.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <functional>
#include <optional>
#include <string>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

at::Tensor normal(at::IntArrayRef shape) { return torch::randn(shape, torch::kFloat64); }

double rms(const at::Tensor& x) { return x.detach().square().mean().sqrt().item<double>(); }

/// A module of the program's own with up to three weights, and a head of LibTorch's.
struct Network : torch::nn::Module {
  using Apply = std::function<at::Tensor(const Network&, const at::Tensor&)>;
  struct Own : torch::nn::Module {};

  explicit Network(Apply apply) : apply(std::move(apply)) {
    own = register_module("own", std::make_shared<Own>());
    a = own->register_parameter("a", normal({3, 4}));
    b = own->register_parameter("b", normal({4, 4}));
    c = own->register_parameter("c", normal({3, 4}));
    head = register_module("head", torch::nn::Linear(4, 2));
    to(torch::kFloat64);
  }
  at::Tensor forward(const at::Tensor& x) { return head(torch::tanh(apply(*this, x))); }

  Apply apply;
  std::shared_ptr<Own> own;
  at::Tensor a, b, c;
  torch::nn::Linear head{nullptr};
};

class ActivationsTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(1);
  }
  SessionOptions options() const {
    return SessionOptions(directory_).preset(Preset::standard).overhead_budget(std::nullopt);
  }

  /// Two steps. `around` runs before each forward pass; what `apply` gives is `output_` after it.
  RunContents train(Network& model, const std::function<void(const at::Tensor&)>& around = {}) {
    torch::optim::SGD optimizer(model.parameters(), 0.05);
    Session session(model, optimizer, options());
    for (int step = 0; step < 2; ++step) {
      const auto x = normal({5, 3});
      {
        const torch::NoGradGuard no_grad;
        expected_[step] = rms(model.apply(model, x));
        head_[step] = rms(model.forward(x));
      }
      if (around) around(x);
      optimizer.zero_grad();
      const auto loss = model.forward(x).sin().square().mean();
      loss.backward();
      optimizer.step();
      session.step(loss, 5);
    }
    session.close();
    return RunContents(directory_);
  }

  void expect_recorded(const RunContents& run) {
    for (int step = 0; step < 2; ++step) {
      EXPECT_NEAR(run.at("activation_rms@own", step), expected_[step], 1e-12) << step;
      EXPECT_NEAR(run.at("activation_rms@head", step), head_[step], 1e-12) << step;
    }
  }
  void expect_not_observed(const RunContents& run) {
    EXPECT_FALSE(run.has("activation_rms@own"));
    ASSERT_EQ(run.events.count("activations_not_observed"), 1u);
    const v1::Event& event = run.events.at("activations_not_observed");
    EXPECT_NE(event.message().find("layer own"), std::string::npos) << event.message();
    EXPECT_NEAR(run.at("activation_rms@head", 1), head_[1], 1e-12);
  }

  double expected_[2] = {};
  double head_[2] = {};
};

TEST_F(ActivationsTest, OfAModuleThatMultipliesTwiceOnlyWhatLeavesIt) {
  Network model([](const Network& n, const at::Tensor& x) { return x.mm(n.a).mm(n.b); });
  {
    const torch::NoGradGuard no_grad;
    model.b.zero_();
  }
  const RunContents run = train(model);
  EXPECT_EQ(expected_[0], 0);
  EXPECT_GT(expected_[1], 0);
  expect_recorded(run);
}

TEST_F(ActivationsTest, ScaledAndAddedProductsOfAModule) {
  Network model([](const Network& n, const at::Tensor& x) {
    return x.matmul(n.c) + x.matmul(n.a).matmul(n.b) * 0.5;
  });
  expect_recorded(train(model));
}

TEST_F(ActivationsTest, ANonlinearityBetweenTheProductsOfAModule) {
  Network model(
      [](const Network& n, const at::Tensor& x) { return torch::relu(x.mm(n.a)).mm(n.b); });
  expect_recorded(train(model));
}

TEST_F(ActivationsTest, WhatMayLieWithinOrBehindTheModuleIsNotObserved) {
  Network scaled([](const Network& n, const at::Tensor& x) { return x.mm(n.a) * 2; });
  expect_not_observed(train(scaled));
}

TEST_F(ActivationsTest, AGateOfTwoProductsIsNotObserved) {
  Network gated(
      [](const Network& n, const at::Tensor& x) { return x.mm(n.a) * torch::sigmoid(x.mm(n.c)); });
  expect_not_observed(train(gated));
}

TEST_F(ActivationsTest, AWeightUsedAgainOnWhatItGaveIsNotObserved) {
  Network again(
      [](const Network& n, const at::Tensor& x) { return torch::tanh(x.mm(n.a).mm(n.b)).mm(n.b); });
  expect_not_observed(train(again));
}

TEST_F(ActivationsTest, WeightsComputedFromParametersAreNoOutputs) {
  const auto mask = torch::ones({3, 4}, torch::kFloat64).tril();
  Network masked([mask](const Network& n, const at::Tensor& x) { return x.mm(n.a * mask); });
  expect_not_observed(train(masked));
}

TEST_F(ActivationsTest, NormalisedWeightsAreWeights) {
  Network normalised([](const Network& n, const at::Tensor& x) { return x.mm(n.a / n.a.norm()); });
  expect_recorded(train(normalised));
}

TEST_F(ActivationsTest, WhatTookNoPartInTheBackwardPassDoesNotCount) {
  Network model([](const Network& n, const at::Tensor& x) { return x.mm(n.a).mm(n.b); });
  const RunContents run = train(model, [&](const at::Tensor& x) {
    (void)model.forward(10 * x);  // an evaluation without NoGradGuard
    auto attacked = (3 * x).requires_grad_();
    const auto gradient = torch::autograd::grad({model.forward(attacked).sum()}, {attacked})[0];
    EXPECT_GT(gradient.abs().sum().item<double>(), 0);
  });
  expect_recorded(run);
}

TEST_F(ActivationsTest, PenaltiesAndTiedWeightsMakeNoOutputs) {
  struct Tied : torch::nn::Module {
    Tied() {
      e = register_module("e", torch::nn::Embedding(6, 4));
      l = register_module("l", torch::nn::Linear(4, 4));
      to(torch::kFloat64);
    }
    torch::nn::Embedding e{nullptr};
    torch::nn::Linear l{nullptr};
  } model;
  torch::optim::SGD optimizer(model.parameters(), 0.05);
  const auto x = torch::randint(0, 6, {5});
  at::Tensor embedded, hidden;
  {
    Session session(model, optimizer, options());
    embedded = model.e(x);
    hidden = model.l(embedded);
    const auto logits = torch::tanh(hidden).mm(model.e->weight.t());
    const auto loss =
        logits.square().mean() + model.l->weight.pow(2).sum() + (model.l->weight - 1).abs().sum();
    loss.backward();
    optimizer.step();
    session.step(loss, 5);
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("activation_rms@e", 0), rms(embedded), 1e-12);
  EXPECT_NEAR(run.at("activation_rms@l", 0), rms(hidden), 1e-12);
}

TEST_F(ActivationsTest, UnitsAreThoseOfTheOperatorWhateverTheModuleIsCalled) {
  struct Linearised : torch::nn::Module {  // a convolution in disguise
    Linearised() {
      kernel = register_parameter("kernel", normal({3, 2, 2}));
      kernel.data()[1] = -kernel.data()[1].abs();
    }
    at::Tensor kernel;
  };
  struct Net : torch::nn::Module {
    Net() {
      own = register_module("own", std::make_shared<Linearised>());
      head = register_module("head", torch::nn::Linear(3, 1));
      to(torch::kFloat64);
    }
    std::shared_ptr<Linearised> own;
    torch::nn::Linear head{nullptr};
  } model;
  torch::optim::SGD optimizer(model.parameters(), 0.01);
  const auto x = torch::rand({4, 2, 6}, torch::kFloat64);
  at::Tensor dead;
  {
    Session session(model, optimizer, options());
    const auto y = torch::conv1d(x, model.own->kernel);
    dead = y.amax({0, 2}).le(0).to(torch::kFloat64).mean();
    const auto loss = model.head(torch::relu(y).mean(2)).square().mean();
    loss.backward();
    optimizer.step();
    session.step(loss, 4);
  }
  EXPECT_GE(dead.item<double>(), 1.0 / 3);
  const RunContents run(directory_);
  EXPECT_DOUBLE_EQ(run.at("dead_fraction@own", 0), dead.item<double>());
}

}  // namespace
}  // namespace tycho
