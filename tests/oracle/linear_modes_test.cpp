// Modes of linear networks: dense singular values, Saxe's sigmoids, and networks that are none.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

at::Tensor orthonormal(int64_t rows, int64_t columns) {
  return std::get<0>(torch::linalg_qr(torch::randn({rows, columns}, torch::kFloat64)));
}

std::vector<double> descending_singular_values(const at::Tensor& matrix) {
  const auto values = torch::linalg_svdvals(matrix.to(torch::kFloat64)).contiguous();
  return {values.data_ptr<double>(), values.data_ptr<double>() + values.numel()};
}

struct Experiment {
  nn::Sequential model{nullptr};
  at::Tensor x;
  at::Tensor y;
  double learning_rate = 0.01;
  int64_t steps = 3;
  int64_t every = 1;
  int64_t chunks = 1;
  bool give_output = true;
  bool squared_error = true;
  std::function<at::Tensor(const at::Tensor&)> after;  // behind the model
};

RunContents train(Experiment& setup, const std::string& name) {
  const auto directory = std::filesystem::temp_directory_path() /
                         ("tycho_linear_modes_" + name + "_" + std::to_string(getpid()));
  std::filesystem::remove_all(directory);
  torch::optim::SGD optimizer(setup.model->parameters(),
                              torch::optim::SGDOptions(setup.learning_rate));
  const auto forward = [&](const at::Tensor& x) {
    const auto output = setup.model->forward(x);
    return setup.after ? setup.after(output) : output;
  };
  const auto loss_of = [&](const at::Tensor& output, const at::Tensor& y) {
    const auto squares = (output - y).square();
    return 0.5 * (setup.squared_error ? squares : squares.square()).sum(-1).mean();
  };
  {
    Session session(*setup.model, optimizer,
                    SessionOptions(directory.string())
                        .preset(Preset::economy)
                        .every("linear_modes", setup.every));
    ProbeLoss probe;
    const auto chunk_of = [&](const at::Tensor& all, int64_t k) {
      return all.chunk(setup.chunks)[static_cast<size_t>(k)];
    };
    const auto output = [&, chunk_of](int64_t k) { return forward(chunk_of(setup.x, k)); };
    if (setup.give_output) probe.output = output;
    probe.loss = [&, output, chunk_of](const at::Tensor& given, int64_t k) {
      return loss_of(given.defined() ? given : output(k), chunk_of(setup.y, k));
    };
    probe.weights.assign(static_cast<size_t>(setup.chunks), 1.0 / double(setup.chunks));
    session.set_probe_loss(probe);
    for (int64_t step = 0; step < setup.steps; ++step) {
      optimizer.zero_grad();
      const auto loss = loss_of(forward(setup.x), setup.y);
      loss.backward();
      optimizer.step();
      session.step(loss, setup.x.size(0));
    }
  }
  RunContents contents(directory.string());
  std::filesystem::remove_all(directory);
  EXPECT_EQ(contents.events.count("probe_fault_linear_modes"), 0U) << name;
  return contents;
}

nn::Linear linear(int64_t in, int64_t out, bool bias = false) {
  nn::Linear layer(nn::LinearOptions(in, out).bias(bias));
  layer->to(torch::kFloat64);
  return layer;
}

TEST(LinearModes, AreTheSingularValuesOfTheProductAndOfTheBestMap) {
  for (const int64_t chunks : {1, 2}) {
    torch::manual_seed(1);
    Experiment setup;
    setup.model = nn::Sequential(linear(6, 9), linear(9, 4), linear(4, 5));
    setup.x = torch::randn({40, 6}, torch::kFloat64);
    const auto map = torch::randn({5, 6}, torch::kFloat64);
    setup.y = torch::matmul(setup.x, map.t());
    setup.chunks = chunks;
    const auto contents = train(setup, "three_layers");
    const auto parameters = setup.model->parameters();
    const auto whole = torch::matmul(parameters[2], torch::matmul(parameters[1], parameters[0]));
    const auto modes = descending_singular_values(whole.detach());
    const auto best = descending_singular_values(map);
    for (size_t k = 0; k < modes.size(); ++k) {
      const std::string entry = "[" + std::to_string(k) + "]";
      EXPECT_NEAR(contents.at("mode_strength" + entry, 2), modes[k], 1e-12);
      EXPECT_NEAR(contents.at("target_mode_strength" + entry, 2), best[k], 1e-9);
    }
    EXPECT_FALSE(contents.has("mode_strength[5]"));
    for (size_t i = 0; i < 2; ++i) {
      const auto lower = parameters[i].detach();
      const auto upper = parameters[i + 1].detach();
      const auto difference = torch::matmul(upper.t(), upper) - torch::matmul(lower, lower.t());
      EXPECT_NEAR(
          contents.at("balance_residual@" + std::to_string(i), 2),
          (difference.norm() / (lower.square().sum() + upper.square().sum())).item<double>(),
          1e-12);
    }
    EXPECT_FALSE(contents.has("balance_residual@2"));
  }
}

TEST(LinearModes, OfNoisyTargetsTendToTheLeastSquaresMap) {
  torch::manual_seed(2);
  Experiment setup;
  setup.model = nn::Sequential(linear(3, 4), linear(4, 2));
  setup.x = torch::randn({50, 3}, torch::kFloat64);
  setup.y = torch::matmul(setup.x, torch::randn({3, 2}, torch::kFloat64)) +
            0.5 * torch::randn({50, 2}, torch::kFloat64);
  setup.learning_rate = 0.1;
  setup.steps = 3001;
  setup.every = 3000;
  const auto contents = train(setup, "noisy");
  for (const char* entry : {"[0]", "[1]"}) {
    EXPECT_NEAR(contents.at(std::string("mode_strength") + entry, 3000),
                contents.at(std::string("target_mode_strength") + entry, 3000), 1e-6);
  }
}

TEST(LinearModes, FollowSaxesSigmoidsFromSmallBalancedWeights) {
  torch::manual_seed(3);
  const std::vector<double> strengths = {3, 1, 0.3};
  const auto left = orthonormal(3, 3);
  const auto right = orthonormal(5, 3);
  const auto between = orthonormal(7, 3);
  constexpr double kInitial = 1e-3;
  Experiment setup;
  setup.model = nn::Sequential(linear(5, 7), linear(7, 3));
  setup.x = orthonormal(20, 5) * std::sqrt(20.0);
  setup.y = torch::matmul(
      setup.x, torch::matmul(left * torch::tensor(strengths, torch::kFloat64), right.t()).t());
  {
    const torch::NoGradGuard no_grad;
    setup.model->parameters()[0].copy_(std::sqrt(kInitial) * torch::matmul(between, right.t()));
    setup.model->parameters()[1].copy_(std::sqrt(kInitial) * torch::matmul(left, between.t()));
  }
  setup.learning_rate = 0.001;
  setup.steps = 12001;
  setup.every = 100;
  const auto contents = train(setup, "saxe");
  for (size_t k = 0; k < strengths.size(); ++k) {
    const double s = strengths[k];
    const auto& series = contents.values.at("mode_strength[" + std::to_string(k) + "]");
    double worst = 0;
    double half = -1;
    for (const auto& [step, value] : series) {
      const double growth = std::exp(2 * s * setup.learning_rate * double(step + 1));
      const double predicted = s * growth / (growth - 1 + s / kInitial);
      worst = std::max(worst, std::abs(value / predicted - 1));
      if (half < 0 && value >= s / 2) half = double(step) * setup.learning_rate;
    }
    // A step grows a small mode by (1 + eta s)^2 instead of e^(2 eta s): eta^2 s^2 less, in each of
    // ln(s / u) / (2 eta s) steps.
    EXPECT_LT(worst, setup.learning_rate * s * std::log(s / kInitial) / 2) << s;
    EXPECT_NEAR(half, std::log(s / kInitial - 1) / (2 * s), 0.11) << s;
    EXPECT_NEAR(contents.at("target_mode_strength[" + std::to_string(k) + "]", 0), s, 1e-9);
  }
  for (const auto& [step, value] : contents.values.at("balance_residual@0")) {
    EXPECT_LT(value, 1e-4) << step;
  }
}

TEST(LinearModes, ZeroWeightsHaveModesThatAreZeroAndNoBalance) {
  Experiment setup;
  setup.model = nn::Sequential(linear(3, 1), linear(1, 2));
  setup.x = torch::randn({4, 3}, torch::kFloat64);
  setup.y = torch::zeros({4, 2}, torch::kFloat64);
  {
    const torch::NoGradGuard no_grad;
    for (const auto& parameter : setup.model->parameters()) parameter.detach().zero_();
  }
  const auto contents = train(setup, "zero");
  EXPECT_EQ(contents.at("mode_strength[0]", 0), 0);
  EXPECT_EQ(contents.at("target_mode_strength[0]", 0), 0);
  EXPECT_FALSE(contents.has("balance_residual@0"));
}

TEST(LinearModes, OfOtherLossesAreThoseOfTheMapAlone) {
  torch::manual_seed(4);
  Experiment setup;
  setup.model = nn::Sequential(linear(3, 4), linear(4, 2));
  setup.x = torch::randn({8, 3}, torch::kFloat64);
  setup.y = torch::randn({8, 2}, torch::kFloat64);
  setup.squared_error = false;
  for (const bool give_output : {true, false}) {
    setup.give_output = give_output;
    const auto contents = train(setup, "alone");
    EXPECT_TRUE(contents.has("mode_strength[0]"));
    EXPECT_FALSE(contents.has("target_mode_strength[0]"));
  }
}

TEST(LinearModes, OfNetworksThatAreNoChainAreAbsent) {
  torch::manual_seed(5);
  const auto absent = [](nn::Sequential model, const std::string& name,
                         std::function<at::Tensor(const at::Tensor&)> after = nullptr) {
    Experiment setup;
    setup.model = std::move(model);
    setup.after = std::move(after);
    setup.x = torch::randn({8, 4}, torch::kFloat64);
    setup.y = torch::randn({8, 4}, torch::kFloat64);
    const auto contents = train(setup, name);
    EXPECT_FALSE(contents.has("mode_strength[0]")) << name;
    EXPECT_EQ(contents.events.count("linear_modes_not_observed"), 1U) << name;
  };
  absent(nn::Sequential(linear(4, 5), nn::ReLU(), linear(5, 4)), "relu");
  absent(nn::Sequential(linear(4, 5), nn::Tanh(), linear(5, 4)), "tanh");
  absent(nn::Sequential(linear(4, 5, true), linear(5, 4)), "bias");
  absent(nn::Sequential(linear(4, 5), linear(5, 4)), "output",
         [](const at::Tensor& output) { return output.sigmoid(); });
  absent(nn::Sequential(linear(4, 5), nn::Functional([](at::Tensor x) { return 2 * x; }),
                        linear(5, 4)),
         "doubled");
  auto shared = linear(4, 4);
  absent(nn::Sequential(shared, shared), "shared");
  nn::LayerNorm norm(nn::LayerNormOptions({5}));
  norm->to(torch::kFloat64);
  absent(nn::Sequential(linear(4, 5), norm, linear(5, 4)), "norm");
}

TEST(LinearModes, ABiasThatIsZeroIsNone) {
  torch::manual_seed(6);
  Experiment setup;
  auto first = linear(3, 4, true);
  first->bias.set_requires_grad(false);
  {
    const torch::NoGradGuard no_grad;
    first->bias.zero_();
  }
  setup.model = nn::Sequential(first, linear(4, 2));
  setup.x = torch::randn({8, 3}, torch::kFloat64);
  setup.y = torch::randn({8, 2}, torch::kFloat64);
  const auto contents = train(setup, "zero_bias");
  EXPECT_TRUE(contents.has("mode_strength[1]"));
}

}  // namespace
}  // namespace tycho
