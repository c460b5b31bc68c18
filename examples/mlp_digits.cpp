// A fully connected network on handwritten digits, trained by SGD with momentum.
// Question: is the batch size sensible, and does every layer learn?

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <exception>
#include <iostream>

#include "arguments.h"
#include "data/tensors.h"

using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

int main(int argc, char** argv) try {
  const Arguments arguments =
      parse_arguments(argc, argv, "mlp_digits", "Trains a fully connected network on digits.",
                      "directory with MNIST or other images in IDX format", 3000);
  torch::manual_seed(1);
  const ImageSet digits = load_digits(arguments.data, 24000, 1);
  const auto images = image_tensor(digits).flatten(1);
  const auto labels = label_tensor(digits);
  const int64_t train_size = digits.size() * 5 / 6;

  torch::nn::Sequential model(torch::nn::Linear(images.size(1), 128), torch::nn::ReLU(),
                              torch::nn::Linear(128, 64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 10));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));

  // A short run: a tenth of its time may go to the instruments (after the first minute
  // 2 % by default).
  const auto options = tycho::SessionOptions(arguments.run).overhead_budget(0.1);
  tycho::Session session(*model, optimizer, options);  // Tycho 1

  for (int64_t step = 0; step < arguments.steps; ++step) {
    const auto batch = torch::randint(train_size, {128}, torch::kInt64);
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model->forward(images.index_select(0, batch)),
                                          labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    session.step(loss, batch.size(0));  // Tycho 2
    if (step % 100 == 0) std::cout << "step " << step << "  loss " << loss.item<double>() << "\n";
  }
  session.close();  // Tycho 3

  torch::NoGradGuard no_grad;
  const auto held_out = torch::arange(train_size, digits.size());
  std::cout << "accuracy on held-out digits "
            << accuracy(model->forward(images.index_select(0, held_out)),
                        labels.index_select(0, held_out))
            << "\nrun " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
