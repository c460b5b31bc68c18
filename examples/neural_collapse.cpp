// A small network on digits, as many of each, trained with weight decay long after it has stopped
// making mistakes. Question: what happens to its features? They collapse to one point
// for each class, the points to the corners of a simplex, and the classifier to these points.

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <algorithm>
#include <exception>
#include <iostream>
#include <vector>

#include "arguments.h"
#include "data/tensors.h"

namespace nn = torch::nn;
using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

int main(int argc, char** argv) try {
  constexpr int64_t kExamples = 1000;  // 100 of each class
  constexpr int64_t kBatch = 100;
  const Arguments arguments = parse_arguments(
      argc, argv, "neural_collapse", "Trains a network on digits until its features collapse.",
      "directory with MNIST or other images in IDX format", 6000);
  torch::manual_seed(1);
  const ImageSet digits = load_digits(arguments.data, kExamples, 1);
  // Classes as large as each other, whatever the order of the data.
  const auto all_labels = label_tensor(digits);
  std::vector<torch::Tensor> chosen;
  for (int64_t digit = 0; digit < 10; ++digit) {
    const auto members = all_labels.eq(digit).nonzero().squeeze(1);
    chosen.push_back(members.narrow(0, 0, std::min<int64_t>(members.size(0), kExamples / 10)));
  }
  const auto index = torch::cat(chosen);
  const auto images = image_tensor(digits).flatten(1).index_select(0, index);
  const auto labels = all_labels.index_select(0, index);

  nn::Sequential model(nn::Linear(images.size(1), 256), nn::BatchNorm1d(256), nn::ReLU(),
                       nn::Linear(256, 256), nn::BatchNorm1d(256), nn::ReLU(), nn::Linear(256, 128),
                       nn::BatchNorm1d(128), nn::ReLU(), nn::Linear(128, 10));
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(0.05).momentum(0.9).weight_decay(2e-3));

  tycho::Session session(*model, optimizer,
                         tycho::SessionOptions(arguments.run)
                             .every("neural_collapse", 50)
                             .every("loss", 50));  // Tycho 1
  // The features of all examples, and which class each belongs to.
  tycho::ProbeLoss probe;
  probe.output = [&](int64_t) { return model->forward(images); };
  probe.loss = [&](const torch::Tensor& output, int64_t) {
    return torch::cross_entropy_loss(output, labels);
  };
  probe.labels = [&](int64_t) { return labels; };
  session.set_probe_loss(probe);

  for (int64_t step = 0; step < arguments.steps; ++step) {
    // The learning rate falls to a tenth for the last third of the steps: noise keeps features
    // apart.
    const double decay = step * 3 < 2 * arguments.steps ? 1 : 0.1;
    static_cast<torch::optim::SGDOptions&>(optimizer.param_groups()[0].options()).lr(0.05 * decay);
    const auto batch = torch::randint(images.size(0), {kBatch}, torch::kInt64);
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model->forward(images.index_select(0, batch)),
                                          labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    session.step(loss, kBatch);  // Tycho 2
    if (step % 500 == 0) std::cout << "step " << step << "  loss " << loss.item<double>() << "\n";
  }
  session.close();  // Tycho 3

  const torch::NoGradGuard no_grad;
  std::cout << "accuracy on the training set " << accuracy(model->forward(images), labels)
            << "\nrun " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
