// Curvature as a session records it, against dense matrices at the same parameters.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tests/oracle/curvature_networks.h"
#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

namespace nn = torch::nn;
namespace F = torch::nn::functional;

struct Task {
  nn::Sequential model;
  at::Tensor x, y;
  explicit Task(uint64_t seed = 1) {
    torch::manual_seed(seed);
    model = nn::Sequential(nn::Linear(4, 6), nn::Tanh(), nn::Linear(6, 3));
    model->to(torch::kFloat64);
    for (auto& parameter : model->parameters()) torch::NoGradGuard(), parameter.mul_(1.5);
    x = torch::randn({16, 4}, torch::kFloat64);
    y = torch::randint(3, {16});
  }
  at::Tensor loss() { return F::cross_entropy(model->forward(x), y); }
  at::Tensor hessian() {
    return dense_hessian([&] { return loss(); }, model->parameters());
  }
  at::Tensor flat_gradient() {
    std::vector<at::Tensor> parts;
    for (const auto& part : torch::autograd::grad({loss()}, model->parameters())) {
      parts.push_back(part.reshape(-1));
    }
    return torch::cat(parts);
  }
  at::Tensor flat() const {
    std::vector<at::Tensor> parts;
    for (const auto& part : model->parameters()) parts.push_back(part.detach().reshape(-1));
    return torch::cat(parts).clone();
  }
};

double largest_of(const at::Tensor& symmetric) {
  return std::get<0>(torch::linalg_eigh(symmetric)).max().item<double>();
}

using CurvatureSession = SessionDirectory;

class CurvatureOfSeed : public CurvatureSession, public ::testing::WithParamInterface<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Seeds, CurvatureOfSeed, ::testing::Range<uint64_t>(1, 6));

TEST_P(CurvatureOfSeed, EveryStatisticIsThatOfTheDenseHessian) {
  Task task(GetParam());
  torch::optim::Adam optimizer(task.model->parameters(),
                               torch::optim::AdamOptions(0.02).weight_decay(0.1).eps(1e-4));
  constexpr int kSteps = 30;
  struct Expected {
    double sharpness, preconditioned, directional, overlap, gradient_square, trace;
    double first, second, change, layer_first, layer_trace, block, fraction, frobenius;
    at::Tensor eigenvalues, top;
  };
  std::vector<Expected> expected;
  {
    Session session(*task.model, optimizer, full());
    session.set_probe_loss([&] { return task.loss(); });
    for (int step = 0; step < kSteps; ++step) {
      Expected e{};
      const auto before = task.flat();
      const double loss_before = task.loss().item<double>();
      const auto gradient_before = task.flat_gradient();
      const auto hessian_before = task.hessian();
      optimizer.zero_grad();
      auto loss = task.loss();
      loss.backward();
      optimizer.step();
      const auto update = task.flat() - before;
      e.first = gradient_before.dot(update).item<double>();
      e.layer_first = gradient_before.slice(0, 0, 30).dot(update.slice(0, 0, 30)).item<double>();
      e.second = 0.5 * update.dot(torch::mv(hessian_before, update)).item<double>();
      e.change = task.loss().item<double>() - loss_before;
      const auto hessian = task.hessian();
      const auto gradient = task.flat_gradient();
      const auto image = torch::mv(hessian, gradient);
      e.gradient_square = gradient.dot(gradient).item<double>();
      e.directional = gradient.dot(image).item<double>() / e.gradient_square;
      e.overlap = gradient.dot(image).item<double>() / std::sqrt(e.gradient_square) /
                  image.norm().item<double>();
      const auto [values, vectors] = torch::linalg_eigh(hessian);
      e.eigenvalues = values.flip(0).slice(0, 0, 10).clone();
      e.top = vectors.select(1, values.size(0) - 1).clone();
      e.sharpness = e.eigenvalues[0].item<double>();
      e.fraction = torch::matmul(vectors.flip(1).slice(1, 0, 10).t(), gradient)
                       .square()
                       .sum()
                       .item<double>() /
                   e.gradient_square;
      e.trace = hessian.trace().item<double>();
      e.frobenius = hessian.norm().item<double>();
      e.layer_trace = hessian.slice(0, 0, 30).slice(1, 0, 30).trace().item<double>();
      e.block = largest_of(hessian.slice(0, 0, 24).slice(1, 0, 24));
      std::vector<at::Tensor> scales;
      for (const auto& parameter : task.model->parameters()) {
        for (const auto& [key, state] : optimizer.state()) {
          (void)key;
          const auto& adam = static_cast<torch::optim::AdamParamState&>(*state);
          // Found by its shape, which is different for each parameter here.
          if (adam.exp_avg().sizes() != parameter.sizes()) continue;
          const double b1 = 1 - std::pow(0.9, adam.step());
          const double b2 = 1 - std::pow(0.999, adam.step());
          scales.push_back((((adam.exp_avg_sq() / b2).sqrt() + 1e-4) * b1).reshape(-1));
        }
      }
      const auto root = torch::cat(scales).rsqrt();
      const auto decayed = hessian + 0.1 * torch::eye(hessian.size(0), torch::kFloat64);
      e.preconditioned = largest_of(root.unsqueeze(1) * decayed * root.unsqueeze(0));
      expected.push_back(e);
      session.step(loss, 16);
    }
  }
  const RunContents run(directory_);
  for (int step = 0; step < kSteps; ++step) {
    const Expected& e = expected[step];
    const auto near = [&](const std::string& key, double value, double tolerance) {
      EXPECT_NEAR(run.at(key, step), value, tolerance * std::abs(value)) << key << " " << step;
    };
    near("sharpness", e.sharpness, 1e-3);
    EXPECT_LE(std::abs(run.at("sharpness", step) - e.sharpness),
              run.at("sharpness_error_bound", step) + 1e-10);
    near("preconditioned_sharpness", e.preconditioned, 1e-3);
    EXPECT_LE(std::abs(run.at("preconditioned_sharpness", step) - e.preconditioned),
              run.at("preconditioned_sharpness_error_bound", step) + 1e-10);
    EXPECT_NEAR(run.at("stability_threshold", step), 38 / 0.02, 1e-9);
    near("directional_sharpness", e.directional, 1e-9);
    near("gradient_curvature_overlap", e.overlap, 1e-9);
    near("probe_grad_norm_sq", e.gradient_square, 1e-9);
    near("block_sharpness#0.weight", e.block, 0.02);
    near("top_subspace_fraction", e.fraction, 0.1);  // the tenth may be another
    for (int i = 0; i < 10; ++i) {
      const std::string at_index = "[" + std::to_string(i) + "]";
      EXPECT_LE(
          std::abs(run.at("hessian_eigenvalue" + at_index, step) - e.eigenvalues[i].item<double>()),
          run.at("hessian_eigenvalue_error_bound" + at_index, step) + 1e-3 * e.sharpness)
          << i;
    }
    EXPECT_NEAR(run.at("top_eigenvector_share@0", step),
                e.top.slice(0, 0, 30).square().sum().item<double>(), 0.1);
    near("loss_change", e.change, 1e-6);
    near("loss_change_first_order", e.first, 1e-8);
    near("loss_change_second_order", e.second, 1e-8);
    near("loss_change_first_order@0", e.layer_first, 1e-8);
    near("gain_ratio", e.change / e.first, 1e-6);
    EXPECT_NEAR(
        run.at("loss_change_second_order@0", step) + run.at("loss_change_second_order@2", step),
        e.second, 1e-9 * std::abs(e.second));
    // A product for each of so few dimensions: exact.
    near("hessian_trace", e.trace, 1e-9);
    EXPECT_LE(run.standard_errors.at("hessian_trace").at(step), 1e-6 * std::abs(e.trace));
    EXPECT_NEAR(run.at("hessian_trace@0", step) + run.at("hessian_trace@2", step),
                run.at("hessian_trace", step), 1e-9 * std::abs(e.trace));
    EXPECT_NEAR(run.at("hessian_trace@0", step), e.layer_trace,
                8 * run.standard_errors.at("hessian_trace@0").at(step) + 1e-9);
    double weights = 0;
    double mean = 0;
    for (int i = 0; i < 60; ++i) {
      const std::string at_index = "[" + std::to_string(i) + "]";
      weights += run.at("spectral_density_weight" + at_index, step);
      mean += run.at("spectral_density_weight" + at_index, step) *
              run.at("spectral_density_node" + at_index, step);
    }
    EXPECT_NEAR(weights, 1, 1e-9);
    // Of two random starts the standard deviation is the Frobenius norm.
    EXPECT_NEAR(mean * 51, e.trace, 5 * e.frobenius);
  }
  EXPECT_EQ(run.events.count("probe_loss_failed"), 0U);
  EXPECT_NE(run.events.at("probe_loss_products").message().find("exact"), std::string::npos);
  EXPECT_EQ(run.events.count("loss_missing_batch_sharpness"), 0U);  // nobody asked by name
  EXPECT_FALSE(run.has("batch_sharpness"));
}

TEST_F(CurvatureSession, CriticalSharpnessIsTheCurvatureAlongTheUpdateOfAQuadratic) {
  // On a quadratic 2/eta_c is u'Hu / (-eta g.u), whatever the optimizer; from far steps and near.
  for (const double rate : {1e-4, 0.05, 0.3, 0.8}) {
    std::filesystem::remove_all(directory_);
    torch::manual_seed(2);
    nn::Linear model(nn::LinearOptions(5, 1).bias(false));
    model->to(torch::kFloat64);
    const auto x = torch::randn({20, 5}, torch::kFloat64);
    const auto y = torch::randn({20, 1}, torch::kFloat64);
    const auto hessian = torch::matmul(x.t(), x) / 20;
    torch::optim::SGD optimizer(model->parameters(), rate);
    std::vector<double> expected;
    {
      Session session(*model, optimizer, full());
      const auto value = [&] { return 0.5 * torch::mse_loss(model(x), y); };
      session.set_probe_loss(value);
      for (int step = 0; step < 6; ++step) {
        optimizer.zero_grad();
        auto loss = value();
        loss.backward();
        const auto g = model->weight.grad().clone().reshape(-1);
        optimizer.step();
        expected.push_back((g.dot(torch::mv(hessian, g)) / g.dot(g)).item<double>());
        session.step(loss, 20);
      }
    }
    const RunContents run(directory_);
    for (size_t step = 0; step < expected.size(); ++step) {
      const auto at = static_cast<int64_t>(step);
      EXPECT_NEAR(run.at("critical_sharpness", at), expected[step], 0.011 * expected[step])
          << rate << " " << step;
      EXPECT_LE(run.at("critical_sharpness_values", at), 8);
    }
  }
}

TEST_F(CurvatureSession, BatchSharpnessIsTheMeanOverFreshBatches) {
  torch::manual_seed(3);
  nn::Linear model(nn::LinearOptions(3, 1).bias(false));
  model->to(torch::kFloat64);
  const auto x = torch::randn({64, 3}, torch::kFloat64);
  const auto y = torch::randn({64, 1}, torch::kFloat64);
  torch::optim::SGD optimizer(model->parameters(), 0.01);
  std::vector<int64_t> asked;
  const auto batch = [&](int64_t index) {
    const auto rows = torch::arange(4) + 4 * (index % 16);
    return 0.5 * torch::mse_loss(model(x.index({rows})), y.index({rows}));
  };
  double expected = 0;
  double pooled_top = 0;
  double pooled_bottom = 0;
  double interaction = 0;
  {
    Session session(*model, optimizer, full());
    session.set_probe_loss([&] { return 0.5 * torch::mse_loss(model(x), y); });
    session.set_batch_loss([&](int64_t index) {
      asked.push_back(index);
      return batch(index);
    });
    auto loss = batch(0);
    loss.backward();
    optimizer.step();
    const auto full_hessian = torch::matmul(x.t(), x) / 64;
    const auto full_gradient =
        torch::autograd::grad({0.5 * torch::mse_loss(model(x), y)}, {model->weight})[0].reshape(-1);
    for (int64_t index = 0; index < 8; ++index) {
      const auto rows = x.slice(0, 4 * index, 4 * index + 4);
      const auto g = torch::autograd::grad({batch(index)}, {model->weight})[0].reshape(-1);
      const auto h = torch::matmul(rows.t(), rows) / 4;
      const double curvature = g.dot(torch::mv(h, g)).item<double>();
      const double square = g.dot(g).item<double>();
      expected += curvature / square / 8;
      pooled_top += curvature;
      pooled_bottom += square;
      interaction +=
          (g.dot(torch::mv(full_hessian, g)) / full_gradient.dot(full_gradient)).item<double>() / 8;
    }
    session.step(loss, 4);
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("batch_sharpness", 0), expected, 1e-9);
  EXPECT_NEAR(run.at("batch_sharpness_pooled", 0), pooled_top / pooled_bottom, 1e-9);
  EXPECT_NEAR(run.at("gradient_noise_interaction", 0), interaction, 1e-9);
  EXPECT_EQ(*std::max_element(asked.begin(), asked.end()), 7);
}

TEST_F(CurvatureSession, TheStepLossIsTheBatchOfTheStepWithItsDropoutMask) {
  torch::manual_seed(4);
  nn::Sequential model(nn::Linear(4, 20), nn::Dropout(0.5), nn::Tanh(), nn::Linear(20, 1));
  model->to(torch::kFloat64);
  torch::optim::SGD optimizer(model->parameters(), 1e-3);
  at::Tensor x, y;
  const auto value = [&] { return torch::mse_loss(model->forward(x), y); };
  {
    Session session(*model, optimizer, full());
    session.set_step_loss(value);
    for (int step = 0; step < 5; ++step) {
      x = torch::randn({6, 4}, torch::kFloat64);
      y = torch::randn({6, 1}, torch::kFloat64);
      optimizer.zero_grad();
      auto loss = value();
      loss.backward();
      optimizer.step();
      session.step(loss, 6);
    }
  }
  const RunContents run(directory_);
  for (int step = 0; step < 5; ++step) {
    // One mask for before and after: the change is that of a small step.
    const double predicted =
        run.at("loss_change_first_order", step) + run.at("loss_change_second_order", step);
    EXPECT_NEAR(run.at("loss_change", step), predicted, 1e-3 * std::abs(predicted)) << step;
  }
  EXPECT_TRUE(run.events.count("loss_change_on_the_batch_of_the_step"));
  EXPECT_FALSE(run.has("sharpness"));
}

TEST_F(CurvatureSession, WhatIsAskedForByNameButHasNoLossIsSaid) {
  Task task;
  torch::optim::SGD optimizer(task.model->parameters(), 0.1);
  {
    Session session(
        *task.model, optimizer,
        SessionOptions(directory_).preset(Preset::economy).every("sharpness", 2).tape(false));
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      auto loss = task.loss();
      loss.backward();
      optimizer.step();
      session.step(loss, 16);
    }
  }
  const RunContents run(directory_);
  EXPECT_NE(run.events.at("loss_missing_sharpness").message().find("set_probe_loss"),
            std::string::npos);
}

TEST_F(CurvatureSession, ALossThatFailsIsSuspendedAndTrainingGoesOn) {
  Task task;
  torch::optim::SGD optimizer(task.model->parameters(), 0.1);
  int calls = 0;
  {
    Session session(*task.model, optimizer, full());
    session.set_probe_loss([&]() -> at::Tensor {
      if (++calls > 30) throw std::runtime_error("out of probe data");
      return task.loss();
    });
    const auto before = task.flat();
    for (int step = 0; step < 6; ++step) {
      optimizer.zero_grad();
      auto loss = task.loss();
      loss.backward();
      optimizer.step();
      session.step(loss, 16);
    }
    // Bit for bit what it is without a session.
    Task alone;
    torch::optim::SGD other(alone.model->parameters(), 0.1);
    for (int step = 0; step < 6; ++step) {
      other.zero_grad();
      alone.loss().backward();
      other.step();
    }
    EXPECT_TRUE(torch::equal(task.flat(), alone.flat()));
  }
  const RunContents run(directory_);
  EXPECT_EQ(calls, 31);
  EXPECT_NE(run.events.at("probe_loss_failed").message().find("out of probe data"),
            std::string::npos);
  EXPECT_EQ(run.values.at("loss").size(), 6U);
}

TEST_F(CurvatureSession, LayersThatAreLeftOutStillCurveTheLoss) {
  Task task;
  torch::optim::SGD optimizer(task.model->parameters(), 0.05);
  double expected = 0;
  {
    Session session(*task.model, optimizer, full().include({"2"}));
    session.set_probe_loss([&] { return task.loss(); });
    auto loss = task.loss();
    loss.backward();
    optimizer.step();
    expected = largest_of(task.hessian());
    session.step(loss, 16);
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("sharpness", 0), expected, 1e-3 * expected);
  EXPECT_FALSE(run.has("top_eigenvector_share@0"));
  EXPECT_TRUE(run.has("top_eigenvector_share@2"));
  EXPECT_FALSE(run.has("loss_change"));  // The update of the other layer is not known.
}

}  // namespace
}  // namespace tycho
