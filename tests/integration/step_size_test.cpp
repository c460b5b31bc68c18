// What the size of steps does to the path of gradient descent, and noise against curvature, as a
// session records them.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
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

using StepSize = SessionDirectory;

/// L = y x^2/2 - c y + k y^2/2, whose sharpness is y while x is small: theory T2.3.
struct Toy : nn::Module {
  static constexpr double kPush = 0.005;
  static constexpr double kPull = 1e-4;
  at::Tensor at;
  Toy(double x, double y) { at = register_parameter("at", torch::tensor({x, y}, torch::kFloat64)); }
  at::Tensor loss() {
    const auto x = at[0];
    const auto y = at[1];
    return y * x * x / 2 - kPush * y + kPull * y * y / 2;
  }
};

/// Trains with SGD for `steps` and gives the run.
template <typename Model>
void train(Model& model, torch::optim::SGDOptions options, const SessionOptions& session_options,
           int steps, const std::function<void(Session&)>& prepare) {
  torch::optim::SGD optimizer(model.parameters(), options);
  Session session(model, optimizer, session_options);
  prepare(session);
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    auto loss = model.loss();
    loss.backward();
    optimizer.step();
    session.step(loss, 1);
  }
}

TEST_F(StepSize, TheCentralFlowOfTheToyIsThatOfItsTwoCycle) {
  constexpr double kRate = 0.1;
  const double variance = 2 * (Toy::kPush - 2 * Toy::kPull / kRate);
  for (const double momentum : {0.0, 0.5}) {
    // Away from its cycle the oscillation comes and goes in bursts of about 800 steps.
    constexpr int kSteps = 20000;
    constexpr int kEvery = 11;
    Toy model(std::sqrt(variance) * 1.05, (2 + 2 * momentum) / kRate);
    std::filesystem::remove_all(directory_);
    train(model, torch::optim::SGDOptions(kRate).momentum(momentum),
          SessionOptions(directory_).preset(Preset::economy).every("central_flow", kEvery), kSteps,
          [&](Session& session) { session.set_probe_loss([&] { return model.loss(); }); });
    const RunContents run(directory_);
    const auto mean = [&](const char* name) {
      double sum = 0;
      for (const auto& [step, value] : run.values.at(name)) sum += value;
      return sum / static_cast<double>(run.values.at(name).size());
    };
    const double measured = mean("central_flow_variance");
    const double predicted = mean("central_flow_variance_predicted");
    const double excess = mean("central_flow_loss_excess");
    const double sharpness = mean("central_flow_sharpness");
    // At the edge of the momentum in use, pushed there by c and held back by the oscillation.
    const double edge = (2 + 2 * momentum) / kRate;
    const double held = 2 * (Toy::kPush - edge * Toy::kPull);
    EXPECT_NEAR(sharpness, edge, 0.02 * edge) << momentum;
    EXPECT_NEAR(predicted, held, 0.04 * held) << momentum;
    // With momentum the bursts are strong, and the last one is cut off.
    EXPECT_NEAR(measured, predicted, (momentum > 0 ? 0.06 : 0.01) * predicted) << momentum;
    EXPECT_NEAR(excess, sharpness * measured / 2, 0.02 * excess) << momentum;
  }
}

TEST_F(StepSize, CentralFlowOfANetworkIsThatOfItsDerivatives) {
  torch::manual_seed(2);
  nn::Sequential model(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  model->to(torch::kFloat64);
  const auto x = torch::randn({10, 3}, torch::kFloat64);
  const auto y = torch::randn({10, 2}, torch::kFloat64);
  constexpr double kDecay = 0.03;
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(0.3).weight_decay(kDecay));
  const auto loss_of = [&] { return F::mse_loss(model->forward(x), y); };
  const auto parameters = model->parameters();
  const auto flat = [&](const std::vector<at::Tensor>& parts) {
    std::vector<at::Tensor> rows;
    for (const auto& part : parts) rows.push_back(part.reshape(-1));
    return torch::cat(rows);
  };
  const auto decayed = [&] { return loss_of() + kDecay / 2 * flat(parameters).square().sum(); };
  const auto put = [&](const at::Tensor& values) {
    const torch::NoGradGuard no_grad;
    int64_t begin = 0;
    for (auto parameter : parameters) {
      parameter.copy_(values.narrow(0, begin, parameter.numel()).view(parameter.sizes()));
      begin += parameter.numel();
    }
  };
  struct Expected {
    double variance, predicted, excess, sharpness, second;
  };
  std::vector<Expected> expected;
  {
    Session session(*model, optimizer, full());
    session.set_probe_loss(loss_of);
    for (int step = 0; step < 5; ++step) {
      const auto before = flat(parameters).detach().clone();
      const double loss_before = decayed().item<double>();
      optimizer.zero_grad();
      auto loss = loss_of();
      loss.backward();
      optimizer.step();
      const auto after = flat(parameters).detach().clone();
      const double loss_after = decayed().item<double>();
      put((before + after) / 2);
      const auto hessian = dense_hessian(decayed, parameters);
      const auto [values, vectors] = torch::linalg_eigh(hessian);
      const auto u = vectors.select(1, values.size(0) - 1);
      // Exact third derivative: the gradient of u'Hu by a third backward pass.
      const auto g = flat(torch::autograd::grad({decayed()}, parameters, {}, true, true));
      const auto hu = flat(torch::autograd::grad({g.dot(u.detach())}, parameters, {}, true, true));
      const auto bend = flat(torch::autograd::grad({hu.dot(u.detach())}, parameters)).detach();
      const auto across = torch::eye(u.size(0), torch::kFloat64) - torch::outer(u, u);
      const auto slope = torch::mv(across, g.detach());
      const auto turned = torch::mv(across, bend);
      const double along = u.dot(after - before).item<double>();
      expected.push_back({along * along / 4,
                          -2 * (slope.dot(turned) / turned.dot(turned)).item<double>(),
                          (loss_before + loss_after) / 2 - decayed().item<double>(),
                          values[-1].item<double>(), values[-2].item<double>()});
      put(after);
      session.step(loss, 10);
    }
  }
  const RunContents run(directory_);
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto step = static_cast<int64_t>(i);
    const auto near = [&](const char* name, double value, double tolerance) {
      EXPECT_NEAR(run.at(name, step), value, tolerance * std::abs(value)) << name << " " << step;
    };
    near("central_flow_sharpness", expected[i].sharpness, 1e-4);
    near("central_flow_second_eigenvalue", expected[i].second, 2e-3);
    near("central_flow_variance", expected[i].variance, 5e-2);
    near("central_flow_variance_predicted", expected[i].predicted, 5e-2);
    near("central_flow_loss_excess", expected[i].excess, 1e-6);
  }
}

TEST_F(StepSize, CentralFlowIsNotClaimedForOtherOptimizers) {
  Toy model(0.07, 20);
  torch::optim::Adam optimizer(model.parameters(), 1e-3);
  {
    Session session(model, optimizer, full());
    session.set_probe_loss([&] { return model.loss(); });
    auto loss = model.loss();
    loss.backward();
    optimizer.step();
    session.step(loss, 1);
  }
  const RunContents run(directory_);
  EXPECT_TRUE(run.events.count("central_flow_not_observed"));
  EXPECT_TRUE(run.events.count("implicit_regularization_not_observed"));
  EXPECT_FALSE(run.has("central_flow_variance"));
  EXPECT_FALSE(run.has("modified_flow_excess"));
}

/// 1/2 sum lambda_i x_i^2: every term of the expansion is known.
struct Quadratic : nn::Module {
  at::Tensor curvatures = torch::tensor({4.0, 1.0, 0.25}, torch::kFloat64);
  at::Tensor x;
  Quadratic() { x = register_parameter("x", torch::tensor({1.0, -2.0, 3.0}, torch::kFloat64)); }
  at::Tensor loss() { return (curvatures * x.square()).sum() / 2; }
};

TEST_F(StepSize, TheModifiedFlowOfAQuadraticIsThatOfItsModes) {
  constexpr double kRate = 0.05;
  Quadratic model;
  train(model, torch::optim::SGDOptions(kRate), full(), 6,
        [&](Session& session) { session.set_step_loss([&] { return model.loss(); }); });
  const RunContents run(directory_);
  auto x = torch::tensor({1.0, -2.0, 3.0}, torch::kFloat64);
  const auto lambda = model.curvatures;
  for (int step = 0; step < 6; ++step) {
    const auto a = kRate * lambda;
    const auto next = x * (1 - a);
    const double excess = (lambda * x.square() * (-a.square() + a.pow(3)) / 2).sum().item<double>();
    const double predicted =
        (lambda * x.square() * (-a.square() + a.pow(3) - a.pow(4) / 2) / 2).sum().item<double>();
    EXPECT_NEAR(run.at("modified_flow_excess", step), excess, 1e-9 * std::abs(excess));
    EXPECT_NEAR(run.at("modified_flow_predicted", step), predicted, 1e-9 * std::abs(predicted));
    const auto square = [&](const at::Tensor& p) { return (lambda * p).square().sum(); };
    EXPECT_NEAR(run.at("modified_flow_first", step),
                kRate / 2 * (square(x) + square(next)).item<double>(), 1e-12);
    EXPECT_NEAR(run.at("implicit_regularizer", step), kRate / 4 * square(next).item<double>(),
                1e-12);
    const auto bent = [&](const at::Tensor& p) { return (lambda.pow(3) * p.square()).sum(); };
    EXPECT_NEAR(run.at("modified_flow_step", step),
                (kRate * (bent(x) + bent(next)) / (square(x) + square(next))).item<double>(),
                1e-12);
    x = next;
  }
}

TEST_F(StepSize, StepsThatAreNoGradientStepsOfTheLossAreNotComparedWithItsFlow) {
  Quadratic model;
  train(model, torch::optim::SGDOptions(0.05), full(), 3, [&](Session& session) {
    session.set_probe_loss([&] { return model.loss() + model.x.sum(); });
  });
  const RunContents run(directory_);
  EXPECT_FALSE(run.has("modified_flow_excess"));
  EXPECT_NE(run.events.at("implicit_regularization_not_observed").message().find("step loss"),
            std::string::npos);
}

TEST_F(StepSize, NoiseIsPredictedFromTheGaussNewtonMatrix) {
  // Of at most 6 parameters Hutch++ gives the trace exactly.
  torch::manual_seed(7);
  const auto x = torch::randn({24, 2}, torch::kFloat64);
  const auto y = torch::randn({24, 1}, torch::kFloat64);
  const auto label = torch::randint(3, {24});
  const auto observe = [&](nn::Linear& model, ProbeLoss loss) {
    std::filesystem::remove_all(directory_);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    Session session(*model, optimizer, full());
    session.set_probe_loss(std::move(loss));
    auto value = model(x).square().mean();
    value.backward();
    optimizer.step();
    session.step(value, 24);
  };
  nn::Linear regression(nn::LinearOptions(2, 1).bias(true));
  nn::Linear classifier(nn::LinearOptions(2, 3).bias(false));
  regression->to(torch::kFloat64);
  classifier->to(torch::kFloat64);

  ProbeLoss squared;
  squared.examples = 24;
  squared.output = [&](int64_t) { return regression(x); };
  squared.loss = [&](const at::Tensor& z, int64_t) { return 0.5 * F::mse_loss(z, y); };
  observe(regression, squared);
  {
    const RunContents run(directory_);
    const double trace = (x.square().sum() / 24 + 1).item<double>();
    EXPECT_NEAR(run.at("gauss_newton_trace", 0), trace, 1e-9);
    const double loss = squared.loss(squared.output(0), 0).item<double>();
    EXPECT_NEAR(run.at("predicted_noise_trace", 0), 2 * loss * trace, 1e-8);
    EXPECT_FALSE(run.has("prediction_calibration"));
  }

  // In two chunks of unequal size.
  ProbeLoss entropy;
  entropy.examples = 24;
  entropy.weights = {16.0 / 24, 8.0 / 24};
  const auto part = [](const at::Tensor& all, int64_t chunk) {
    return chunk == 0 ? all.slice(0, 0, 16) : all.slice(0, 16, 24);
  };
  entropy.output = [&](int64_t chunk) { return classifier(part(x, chunk)); };
  entropy.loss = [&](const at::Tensor& z, int64_t chunk) {
    return F::cross_entropy(z, part(label, chunk));
  };
  observe(classifier, entropy);
  {
    const RunContents run(directory_);
    const auto p = torch::softmax(classifier(x).detach(), 1);
    const double trace = ((p * (1 - p)).sum(1) * x.square().sum(1)).mean().item<double>();
    EXPECT_NEAR(run.at("gauss_newton_trace", 0), trace, 1e-9);
    EXPECT_NEAR(run.at("predicted_noise_trace", 0), trace, 1e-6);
    const double uncertainty = -(p * p.log()).sum(1).mean().item<double>();
    EXPECT_NEAR(run.at("prediction_calibration", 0),
                F::cross_entropy(classifier(x), label).item<double>() / uncertainty, 1e-6);
  }

  entropy.examples = 0;
  observe(classifier, entropy);
  const RunContents run(directory_);
  EXPECT_FALSE(run.has("predicted_noise_trace"));
  EXPECT_NE(run.events.at("noise_curvature_not_observed").message().find("examples"),
            std::string::npos);
}

}  // namespace
}  // namespace tycho
