// The same network trained by SGD to the same loss with batches of 8 to 512 digits, each with a few
// learning rates, of which the best counts. Question: how large may a batch be before it wastes
// examples? Steps S and examples E to the loss lie on (S/S_min - 1)(E/E_min - 1) = 1:
//   tycho compare RUN/*

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <algorithm>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>

#include "arguments.h"
#include "data/tensors.h"

namespace nn = torch::nn;
using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

namespace {

constexpr int64_t kHeldOut = 500;

struct Digits {
  torch::Tensor images;  ///< the first kHeldOut are not trained on
  torch::Tensor labels;
};

/// Trains until the loss on held-out digits is `target`, or for `most` steps; returns the steps.
int64_t train(const std::string& run, const Digits& digits, int64_t batch_size,
              double learning_rate, double target, int64_t most) {
  torch::manual_seed(1);  // all runs begin with the same weights
  nn::Sequential model(nn::Linear(digits.images.size(1), 64), nn::ReLU(), nn::Linear(64, 10));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(learning_rate));
  const auto held_out_loss = [&] {
    return torch::cross_entropy_loss(model->forward(digits.images.narrow(0, 0, kHeldOut)),
                                     digits.labels.narrow(0, 0, kHeldOut));
  };
  // Small batches take many steps, of which each changes little.
  const int64_t every = std::max<int64_t>(1, 64 / batch_size);

  tycho::Session session(*model, optimizer,
                         tycho::SessionOptions(run)
                             .run_name("batch " + std::to_string(batch_size))
                             .every("loss", every)
                             .every("noise", 4 * every));  // Tycho 1
  session.set_probe_loss(held_out_loss);

  int64_t step = 0;
  for (double loss_now = target + 1; step < most && loss_now > target; ++step) {
    const auto batch = torch::randint(kHeldOut, digits.images.size(0), {batch_size}, torch::kInt64);
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model->forward(digits.images.index_select(0, batch)),
                                          digits.labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    session.step(loss, batch_size);  // Tycho 2
    if (step % every == 0) {
      const auto pause = session.pause();
      const torch::NoGradGuard no_grad;
      loss_now = held_out_loss().item<double>();
    }
  }
  session.close();  // Tycho 3
  return step;
}

}  // namespace

int main(int argc, char** argv) try {
  double target = 0.5;
  const Arguments arguments = parse_arguments(
      argc, argv, "batch_sweep", "Trains one network at several batch sizes to the same loss.",
      "directory with MNIST or other images in IDX format", 4000, [&](CLI::App& app) {
        app.add_option("--target", target, "loss on held-out digits at which a run ends")
            ->check(CLI::Range(0.0, 100.0))
            ->capture_default_str();
      });
  const ImageSet set = load_digits(arguments.data, 12000, 1);
  const Digits digits{image_tensor(set).flatten(1), label_tensor(set)};
  for (const int64_t batch_size : {8, 32, 128, 512}) {
    int64_t fewest = arguments.steps;
    for (const double learning_rate : {0.1, 0.2, 0.4, 0.8}) {
      std::ostringstream run;
      run << arguments.run << "/batch-" << batch_size << "-rate-" << learning_rate;
      // One that takes half as many more is not the best.
      const int64_t most = std::min(arguments.steps, fewest + fewest / 2);
      fewest = std::min(fewest, train(run.str(), digits, batch_size, learning_rate, target, most));
    }
    std::cout << "batch " << batch_size << ": " << fewest << " steps, " << fewest * batch_size
              << " examples to a loss of " << target << "\n";
  }
  std::cout << "runs " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
