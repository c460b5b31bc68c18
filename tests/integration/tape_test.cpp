// Losses that the program did not give, made from the operators of its own steps.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

constexpr int kChunks = 4;  // of the probe loss

class TapeSession : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        (std::filesystem::temp_directory_path() / ("tycho_tape_" + std::to_string(getpid())))
            .string();
    std::filesystem::remove_all(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  using Loss = std::function<at::Tensor(nn::Sequential&, int step)>;

  static SessionOptions every_step(const std::string& directory) {
    return SessionOptions(directory)
        .preset(Preset::economy)
        .overhead_budget(std::nullopt)
        .every("sharpness", 1)
        .every("hessian_trace", 1)
        .every("loss_change", 1);
  }

  static nn::Sequential network() {
    torch::manual_seed(5);
    nn::Sequential model(nn::Linear(3, 6), nn::Tanh(), nn::Linear(6, 4));
    model->to(at::kDouble);
    return model;
  }

  /// The weights at the end.
  std::vector<at::Tensor> train(const Loss& loss_of, bool observed, bool given, int steps = 7) {
    auto model = network();
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    std::optional<Session> session;
    if (observed) {
      session.emplace(*model, optimizer, every_step(directory_).tape(!given));
      if (given) {
        ProbeLoss probe;
        probe.weights = std::vector<double>(kChunks, 1.0 / kChunks);
        probe.loss = [&](const at::Tensor&, int64_t chunk) {
          return loss_of(model, static_cast<int>(chunk));
        };
        session->set_probe_loss(probe);
      }
    }
    for (int step = 0; step < steps; ++step) {
      optimizer.zero_grad();
      const auto loss = loss_of(model, step);
      loss.backward();
      optimizer.step();
      if (session) session->step(loss, 8);
    }
    if (session) session->close();
    std::vector<at::Tensor> left;
    for (const auto& parameter : model->parameters()) left.push_back(parameter.detach().clone());
    return left;
  }

  static at::Tensor cross_entropy(nn::Sequential& model, int step) {
    const auto x = torch::sin(torch::arange(24, at::kDouble) * (step + 1)).reshape({8, 3});
    const auto y = torch::arange(8, at::kLong).add(step).remainder(4);
    return torch::cross_entropy_loss(model->forward(x), y.remainder(2));
  }

  std::string directory_;
};

TEST_F(TapeSession, MeasuresWhatAGivenProbeLossMeasures) {
  const auto bare = train(&cross_entropy, false, false);
  const auto taped = train(&cross_entropy, true, false);
  const RunContents from_tape(directory_);
  std::filesystem::remove_all(directory_);
  train(&cross_entropy, true, true);
  const RunContents from_user(directory_);
  for (size_t i = 0; i < bare.size(); ++i) EXPECT_TRUE(torch::equal(bare[i], taped[i]));
  EXPECT_NE(from_tape.events.at("probe_loss_from_tape").message().find("32 examples"),
            std::string::npos);
  for (const int64_t step : {5, 6}) {
    const double expected = from_user.at("sharpness", step);
    EXPECT_NEAR(from_tape.at("sharpness", step), expected, 1e-9 * std::abs(expected)) << step;
  }
  EXPECT_TRUE(from_tape.has("loss_change"));
}

// The weights before an update do not depend on the batch that the step then takes.
TEST_F(TapeSession, TheBatchOfAStepIsTheFreshBatchAtTheWeightsBeforeItsUpdate) {
  auto model = network();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  std::vector<double> expected;
  {
    Session session(*model, optimizer,
                    SessionOptions(directory_)
                        .preset(Preset::economy)
                        .overhead_budget(std::nullopt)
                        .every("batch_sharpness", 1));
    for (int step = 0; step < 8; ++step) {
      const auto again = cross_entropy(model, step);
      const auto gradients = torch::autograd::grad({again}, model->parameters(), {}, true, true);
      at::Tensor along = torch::zeros({}, at::kDouble);
      double square = 0;
      for (const auto& gradient : gradients) {
        along = along + (gradient * gradient.detach()).sum();
        square += gradient.detach().square().sum().item<double>();
      }
      const auto products = torch::autograd::grad({along}, model->parameters());
      double curvature = 0;
      for (size_t i = 0; i < products.size(); ++i) {
        curvature += (products[i] * gradients[i].detach()).sum().item<double>();
      }
      expected.push_back(curvature / square);
      optimizer.zero_grad();
      const auto loss = cross_entropy(model, step);
      loss.backward();
      optimizer.step();
      session.step(loss, 8);
    }
  }
  const RunContents run(directory_);
  for (const int64_t step : {5, 6, 7}) {
    const double value = expected[static_cast<size_t>(step)];
    EXPECT_NEAR(run.at("batch_sharpness", step), value, 1e-9 * std::abs(value)) << step;
    EXPECT_NEAR(run.at("batch_sharpness_pooled", step), value, 1e-9 * std::abs(value)) << step;
  }
}

TEST_F(TapeSession, CanBeSwitchedOff) {
  setenv("TYCHO_TAPE", "off", 1);
  train(&cross_entropy, true, false);
  unsetenv("TYCHO_TAPE");
  const RunContents run(directory_);
  EXPECT_EQ(run.events.count("probe_loss_from_tape"), 0u);
  EXPECT_FALSE(run.has("sharpness"));
}

struct Doubled : torch::autograd::Function<Doubled> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) {
    return x * 2;
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*,
                                               torch::autograd::tensor_list g) {
    return {g[0] * 2};
  }
};

TEST_F(TapeSession, WhatCannotBeCalledAgainIsSaidOnceAndTrainingGoesOn) {
  const Loss custom = [](nn::Sequential& model, int step) {
    return Doubled::apply(cross_entropy(model, step));
  };
  const auto bare = train(custom, false, false);
  const auto taped = train(custom, true, false);
  for (size_t i = 0; i < bare.size(); ++i) EXPECT_TRUE(torch::equal(bare[i], taped[i]));
  const RunContents run(directory_);
  EXPECT_NE(run.events.at("tape_refused").message().find("Doubled"), std::string::npos);
  EXPECT_NE(run.events.at("loss_missing_sharpness").message().find("set_probe_loss"),
            std::string::npos);
  EXPECT_FALSE(run.has("sharpness"));
}

TEST_F(TapeSession, SeveralBackwardPassesAreNotOneLoss) {
  auto model = network();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, every_step(directory_));
    for (int step = 0; step < 6; ++step) {
      optimizer.zero_grad();
      at::Tensor loss;
      for (int micro = 0; micro < 2; ++micro) {
        loss = cross_entropy(model, 2 * step + micro);
        loss.backward();
      }
      optimizer.step();
      session.step(loss, 16);
    }
  }
  const RunContents run(directory_);
  EXPECT_NE(run.events.at("tape_refused").message().find("several backward passes"),
            std::string::npos);
  EXPECT_FALSE(run.has("sharpness"));
}

// The loss of a step is the sum of its parts', whether given as a number or a tensor.
TEST_F(TapeSession, MicrobatchesAreOneLoss) {
  const auto part_of = [](nn::Sequential& model, int step, int part) {
    return cross_entropy(model, 3 * step + part) / 3;
  };
  const auto accuracy = [](nn::Sequential& model) {
    return model->forward(torch::ones({2, 3}, at::kDouble)).gt(0).to(at::kDouble).mean();
  };
  std::vector<std::map<std::string, double>> found;
  for (const bool given : {false, true}) {
    for (const bool as_number : {true, false}) {
      auto model = network();
      torch::optim::SGD optimizer(model->parameters(), 0.1);
      std::filesystem::remove_all(directory_);
      {
        Session session(*model, optimizer, every_step(directory_).tape(!given));
        ProbeLoss probe;
        probe.weights = std::vector<double>(kChunks, 1.0 / kChunks);
        probe.loss = [&](const at::Tensor&, int64_t chunk) {
          at::Tensor sum;
          for (int part = 0; part < 3; ++part) {
            const auto each = part_of(model, static_cast<int>(chunk), part);
            sum = sum.defined() ? sum + each : each;
          }
          return sum;
        };
        if (given) session.set_probe_loss(probe);
        for (int step = 0; step < 8; ++step) {
          optimizer.zero_grad();
          at::Tensor total = torch::zeros({}, at::kDouble);
          for (int part = 0; part < 3; ++part) {
            const auto loss = part_of(model, step, part);
            loss.backward();
            total = total + loss.detach();
          }
          (void)accuracy(model);  // a scalar that is no part of the loss
          optimizer.step();
          if (as_number) {
            session.step(total.item<double>(), 24);
          } else {
            session.step(total, 24);
          }
        }
      }
      const RunContents run(directory_);
      EXPECT_EQ(run.events.count("tape_refused"), 0u);
      ASSERT_TRUE(run.has("sharpness"));
      found.push_back(
          {{"sharpness", run.at("sharpness", 7)}, {"trace", run.at("hessian_trace", 7)}});
    }
  }
  for (size_t i = 1; i < found.size(); ++i) {
    for (const auto& [name, value] : found[0]) {
      EXPECT_NEAR(found[i].at(name), value, 1e-9 * std::abs(value)) << name << " " << i;
    }
  }
}

TEST_F(TapeSession, ABatchThatIsTooLargeIsSaid) {
  auto model = network();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, every_step(directory_).tape_memory(1));
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      const auto loss = model->forward(torch::randn({100000, 3}, at::kDouble)).square().mean();
      loss.backward();
      optimizer.step();
      session.step(loss, 100000);
    }
  }
  const RunContents run(directory_);
  EXPECT_NE(run.events.at("tape_refused").message().find("tape_memory"), std::string::npos);
}

TEST_F(TapeSession, AParameterGroupThatJoinsBeginsANewProbeLoss) {
  auto model = network();
  nn::Linear late(4, 2);
  late->to(at::kDouble);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  int64_t parameters = 0;
  {
    Session session(*model, optimizer, every_step(directory_));
    for (int step = 0; step < 16; ++step) {
      if (step == 7) {
        model->push_back(late);
        optimizer.add_param_group(late->parameters());
      }
      optimizer.zero_grad();
      const auto loss = step < 7 ? cross_entropy(model, step) : cross_entropy(model, step) * 2;
      loss.backward();
      optimizer.step();
      session.step(loss, 8);
    }
    parameters = static_cast<int64_t>(model->parameters().size());
  }
  EXPECT_EQ(parameters, 6);
  const RunContents run(directory_);
  EXPECT_TRUE(run.has("sharpness"));
  EXPECT_EQ(run.events.count("tape_refused"), 0u);
  EXPECT_EQ(run.events.count("probe_loss_failed"), 0u);
  EXPECT_GT(run.at("sharpness", 6), 0);
  EXPECT_GT(run.at("sharpness", 15), 0);
}

TEST_F(TapeSession, DropoutAndBatchNormalisationGoOnAsWithoutIt) {
  const Loss noisy = [](nn::Sequential& model, int step) {
    static nn::BatchNorm1d norm(3);
    if (step == 0) norm = nn::BatchNorm1d(3);
    norm->to(at::kDouble);
    const auto x = norm->forward(torch::randn({8, 3}, at::kDouble));
    return torch::dropout(model->forward(x), 0.4, true).square().mean() + norm->running_mean.sum();
  };
  const auto bare = train(noisy, false, false);
  const auto taped = train(noisy, true, false);
  for (size_t i = 0; i < bare.size(); ++i) EXPECT_TRUE(torch::equal(bare[i], taped[i]));
  const RunContents run(directory_);
  EXPECT_EQ(run.events.count("tape_refused"), 0u);
  EXPECT_TRUE(run.has("sharpness"));
}

TEST_F(TapeSession, TorchScriptIsProvedOrRefused) {
  const auto train_script = [&](bool observed) {
    torch::manual_seed(2);
    torch::jit::Module model("Net");
    model.register_parameter("weight", torch::randn({3, 5}, at::kDouble).requires_grad_(), false);
    model.define("def forward(self, x):\n  return torch.tanh(torch.matmul(x, self.weight)) * 2\n");
    std::vector<at::Tensor> parameters;
    for (const at::Tensor& parameter : model.parameters()) parameters.push_back(parameter);
    torch::optim::SGD optimizer(parameters, 0.1);
    std::optional<Session> session;
    if (observed) session.emplace(model, optimizer, every_step(directory_));
    for (int step = 0; step < 8; ++step) {
      optimizer.zero_grad();
      const auto x = torch::randn({4, 3}, at::kDouble);
      const auto loss = model.forward({x}).toTensor().square().mean();
      loss.backward();
      optimizer.step();
      if (session) session->step(loss, 4);
    }
    return parameters[0].detach().clone();
  };
  const auto bare = train_script(false);
  EXPECT_TRUE(torch::equal(bare, train_script(true)));
  const RunContents run(directory_);
  EXPECT_EQ(run.events.count("probe_loss_failed"), 0u);
  EXPECT_GE(run.events.count("probe_loss_from_tape") + run.events.count("tape_refused"), 1u);
  EXPECT_EQ(run.has("sharpness"), run.events.count("probe_loss_from_tape") > 0);
}

TEST_F(TapeSession, ALossThatWasNotComputedInTheStepIsSaid) {
  auto model = network();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, every_step(directory_));
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      cross_entropy(model, step).backward();
      optimizer.step();
      session.step(123.0 + step, 8);
    }
  }
  const RunContents run(directory_);
  EXPECT_NE(run.events.at("tape_refused").message().find("Session::step"), std::string::npos);
}

// An operator that no rule knows: with the tape the examples are exact from the first step on that
// has one, without it they are absent and it is said.
TEST_F(TapeSession, ExamplesOfRowsThatNoRuleFollowsAreEstablishedOnTheTape) {
  for (const bool taped : {true, false}) {
    std::filesystem::remove_all(directory_);
    auto model = network();
    torch::optim::SGD optimizer(model->parameters(), 0.001);
    std::vector<double> expected;
    std::vector<at::Tensor> data;
    for (int step = 0; step < 8; ++step) data.push_back(torch::randn({4, 5, 3}, at::kDouble));
    {
      Session session(*model, optimizer,
                      SessionOptions(directory_).overhead_budget(std::nullopt).tape(taped));
      for (int step = 0; step < 8; ++step) {
        optimizer.zero_grad();
        const at::Tensor& x = data[static_cast<size_t>(step)];
        const auto losses_of = [&](nn::SequentialImpl& network) {
          const auto y = network.forward(x).unfold(1, 2, 1).sum(-1);
          return y.sin().cumsum(1).square().sum({1, 2});
        };
        const auto copy = std::dynamic_pointer_cast<nn::SequentialImpl>(model->clone());
        const auto apart = losses_of(*copy);
        double mean = 0;
        for (int64_t i = 0; i < 4; ++i) {
          const auto g = torch::autograd::grad({apart[i]}, {copy->parameters()[0]}, {}, true);
          mean += g[0].square().sum().item<double>() / 4;
        }
        expected.push_back(mean);
        const auto loss = losses_of(*model).mean();
        loss.backward();
        optimizer.step();
        session.step(loss, 4);
      }
    }
    const RunContents run(directory_);
    EXPECT_EQ(run.has("per_example_grad_norm_sq#0.weight"), taped);
    EXPECT_EQ(run.events.count("examples_by_experiment"), taped ? 1u : 0u);
    EXPECT_EQ(run.events.count("per_example_gradients_not_observed"), taped ? 0u : 1u);
    for (int64_t step = 0; taped && step < 8; ++step) {
      const double right = expected[static_cast<size_t>(step)];
      EXPECT_NEAR(run.at("per_example_grad_norm_sq#0.weight", step), right, 1e-9 * right) << step;
    }
  }
}

}  // namespace
}  // namespace tycho
