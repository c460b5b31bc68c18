// Two linear layers without biases learn a linear map by gradient descent, from weights that are
// small, balanced, and aligned with it. Question: which part of a task is learned when? Theory
// answers exactly: each mode, with target s and initial strength u, follows the sigmoid
// s e^(2st) / (e^(2st) - 1 + s/u) in t = learning rate times steps.

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <exception>
#include <iostream>

#include "arguments.h"

namespace nn = torch::nn;

namespace {

constexpr int64_t kInputs = 8;
constexpr int64_t kHidden = 12;
constexpr int64_t kOutputs = 6;
constexpr int64_t kExamples = 32;
constexpr double kLearningRate = 0.01;
constexpr double kInitialStrength = 1e-3;

/// Orthonormal columns.
torch::Tensor orthonormal(int64_t rows, int64_t columns) {
  return std::get<0>(torch::linalg_qr(torch::randn({rows, columns}, torch::kFloat64)));
}

}  // namespace

int main(int argc, char** argv) try {
  const auto arguments = tycho::examples::parse_arguments(
      argc, argv, "deep_linear", "Trains a deep linear network, mode by mode.", "", 2000);
  torch::manual_seed(1);
  const auto strengths = torch::tensor({3.0, 2.0, 1.2, 0.7, 0.4, 0.25}, torch::kFloat64);
  const auto left = orthonormal(kOutputs, kOutputs);
  const auto right = orthonormal(kInputs, kOutputs);
  const auto between = orthonormal(kHidden, kOutputs);
  // White inputs: X'X / examples = 1.
  const auto x = orthonormal(kExamples, kInputs) * std::sqrt(static_cast<double>(kExamples));
  const auto y = torch::matmul(x, torch::matmul(left * strengths, right.t()).t());

  nn::Sequential model(nn::Linear(nn::LinearOptions(kInputs, kHidden).bias(false)),
                       nn::Linear(nn::LinearOptions(kHidden, kOutputs).bias(false)));
  model->to(torch::kFloat64);
  {
    const torch::NoGradGuard no_grad;
    const double root = std::sqrt(kInitialStrength);
    model->parameters()[0].copy_(root * torch::matmul(between, right.t()));
    model->parameters()[1].copy_(root * torch::matmul(left, between.t()));
  }
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(kLearningRate));
  const auto loss_of = [&](const torch::Tensor& output) {
    return 0.5 * (output - y).square().sum(1).mean();
  };

  tycho::Session session(*model, optimizer,
                         tycho::SessionOptions(arguments.run)
                             .every("linear_modes", 10)
                             .every("scalars", 10)
                             .every("loss", 1));  // Tycho 1
  tycho::ProbeLoss probe;
  probe.output = [&](int64_t) { return model->forward(x); };
  probe.loss = [&](const torch::Tensor& output, int64_t) { return loss_of(output); };
  session.set_probe_loss(probe);

  torch::Tensor loss;
  for (int64_t step = 0; step < arguments.steps; ++step) {
    optimizer.zero_grad();
    loss = loss_of(model->forward(x));
    loss.backward();
    optimizer.step();
    session.step(loss, kExamples);  // Tycho 2
    if (step % 200 == 0) std::cout << "step " << step << "  loss " << loss.item<double>() << "\n";
  }
  session.close();  // Tycho 3

  for (int64_t k = 0; k < kOutputs; ++k) {
    const double s = strengths[k].item<double>();
    const double half = std::log(s / kInitialStrength - 1) / (2 * s);
    std::cout << "mode " << k << ": strength " << s << ", half of it predicted at step "
              << std::lround(half / kLearningRate) << "\n";
  }
  std::cout << "run " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
