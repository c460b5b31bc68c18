// Gradient accumulation: four backward passes before each optimizer step.
// Question: what is the gradient noise when a step is made of several microbatches?

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <exception>
#include <iostream>

#include "arguments.h"
#include "data/tensors.h"

using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

int main(int argc, char** argv) try {
  const Arguments arguments =
      parse_arguments(argc, argv, "microbatches", "Trains with four microbatches a step.",
                      "directory with MNIST or other images in IDX format", 800);
  torch::manual_seed(4);
  const ImageSet digits = load_digits(arguments.data, 12000, 4);
  const auto images = image_tensor(digits).flatten(1);
  const auto labels = label_tensor(digits);
  constexpr int64_t kMicrobatches = 4;
  constexpr int64_t kMicrobatchSize = 32;

  torch::nn::Sequential model(torch::nn::Linear(images.size(1), 128), torch::nn::GELU(),
                              torch::nn::LayerNorm(torch::nn::LayerNormOptions({128})),
                              torch::nn::Linear(128, 10));
  torch::optim::RMSprop optimizer(model->parameters(), torch::optim::RMSpropOptions(1e-3));

  tycho::Session session(*model, optimizer, tycho::SessionOptions(arguments.run));  // Tycho 1

  for (int64_t step = 0; step < arguments.steps; ++step) {
    optimizer.zero_grad();
    double loss = 0;
    for (int64_t i = 0; i < kMicrobatches; ++i) {
      const auto batch = torch::randint(digits.size(), {kMicrobatchSize}, torch::kInt64);
      auto part = torch::cross_entropy_loss(model->forward(images.index_select(0, batch)),
                                            labels.index_select(0, batch)) /
                  kMicrobatches;
      part.backward();
      loss += part.item<double>();
    }
    optimizer.step();
    session.step(loss, kMicrobatches * kMicrobatchSize);  // Tycho 2: the examples of the whole step
    if (step % 100 == 0) std::cout << "step " << step << "  loss " << loss << "\n";
  }
  session.close();  // Tycho 3
  std::cout << "run " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
