// Gradient descent, gradient descent with momentum, and Adam on the same small regression, with all
// data in every step. Question: how sharp may the loss become before a learning rate is too large
// for it? Theory has a threshold for each optimizer; sharpness rises until it gets there, and
// stays.

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"

namespace nn = torch::nn;
namespace optim = torch::optim;

namespace {

using MakeOptimizer = std::function<std::unique_ptr<optim::Optimizer>(std::vector<at::Tensor>)>;

/// The fourth Chebyshev polynomial at 20 points of [-1, 1], learned by a network of two hidden
/// layers of tanh units in float64.
void train(const std::string& run, int64_t steps, const MakeOptimizer& make_optimizer) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(1, 40), nn::Tanh(), nn::Linear(40, 40), nn::Tanh(),
                       nn::Linear(40, 1));
  model->to(torch::kFloat64);
  const auto x = torch::linspace(-1, 1, 20, torch::kFloat64).unsqueeze(1);
  const auto y = 8 * x.pow(4) - 8 * x.pow(2) + 1;
  const auto loss_on_all_data = [&] { return 0.5 * torch::mse_loss(model->forward(x), y); };
  const auto optimizer = make_optimizer(model->parameters());

  tycho::Session session(*model, *optimizer,
                         tycho::SessionOptions(run)
                             .every("sharpness", 20)
                             .every("preconditioned_sharpness", 20)
                             .every("loss_change", 20)
                             .every("central_flow", 20)
                             .every("loss", 1));  // Tycho 1
  session.set_probe_loss(loss_on_all_data);       // what the sharpness is that of

  at::Tensor loss;
  for (int64_t step = 0; step < steps; ++step) {
    optimizer->zero_grad();
    loss = loss_on_all_data();
    loss.backward();
    optimizer->step();
    session.step(loss, x.size(0));  // Tycho 2
  }
  session.close();  // Tycho 3
  std::cout << "run " << run << "  loss " << loss.item<double>() << "\n";
}

}  // namespace

int main(int argc, char** argv) try {
  const auto arguments = tycho::examples::parse_arguments(
      argc, argv, "edge_of_stability",
      "Trains to the edge of stability of gradient descent, of momentum and of Adam.", "", 6000);
  train(arguments.run + "/gradient_descent", arguments.steps, [](std::vector<at::Tensor> all) {
    return std::make_unique<optim::SGD>(std::move(all), optim::SGDOptions(0.2));
  });
  train(arguments.run + "/momentum", arguments.steps, [](std::vector<at::Tensor> all) {
    return std::make_unique<optim::SGD>(std::move(all), optim::SGDOptions(0.2).momentum(0.6));
  });
  train(arguments.run + "/adam", arguments.steps, [](std::vector<at::Tensor> all) {
    return std::make_unique<optim::Adam>(std::move(all), optim::AdamOptions(2e-3));
  });
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
