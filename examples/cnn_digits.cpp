// A convolutional network with batch normalisation and dropout on handwritten digits, trained by
// Adam. Question: which layer carries the gradient noise, and do units die?

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <exception>
#include <iostream>

#include "arguments.h"
#include "data/tensors.h"

using namespace tycho::examples;  // NOLINT(google-build-using-namespace)
namespace nn = torch::nn;

int main(int argc, char** argv) try {
  const Arguments arguments =
      parse_arguments(argc, argv, "cnn_digits", "Trains a convolutional network on digits.",
                      "directory with MNIST or other images of 28 x 28 in IDX format", 1500);
  torch::manual_seed(2);
  const ImageSet digits = load_digits(arguments.data, 12000, 2);
  const auto images = image_tensor(digits);
  const auto labels = label_tensor(digits);
  const int64_t train_size = digits.size() * 5 / 6;

  nn::Sequential model(
      nn::Conv2d(nn::Conv2dOptions(1, 16, 3).padding(1)), nn::ReLU(), nn::MaxPool2d(2),
      nn::Conv2d(nn::Conv2dOptions(16, 32, 3).padding(1).bias(false)), nn::BatchNorm2d(32),
      nn::ReLU(nn::ReLUOptions(/*inplace=*/true)), nn::MaxPool2d(2), nn::Flatten(),
      nn::Linear(32 * 7 * 7, 64), nn::ReLU(), nn::Dropout(0.25), nn::Linear(64, 10));
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));

  tycho::Session session(*model, optimizer, tycho::SessionOptions(arguments.run));  // Tycho 1

  for (int64_t step = 0; step < arguments.steps; ++step) {
    const auto batch = torch::randint(train_size, {64}, torch::kInt64);
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model->forward(images.index_select(0, batch)),
                                          labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    session.step(loss, batch.size(0));  // Tycho 2
    if (step % 50 == 0) std::cout << "step " << step << "  loss " << loss.item<double>() << "\n";
  }
  session.close();  // Tycho 3

  torch::NoGradGuard no_grad;
  model->eval();
  const auto held_out = torch::arange(train_size, digits.size());
  std::cout << "accuracy on held-out digits "
            << accuracy(model->forward(images.index_select(0, held_out)),
                        labels.index_select(0, held_out))
            << "\nrun " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
