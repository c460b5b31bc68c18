// A TorchScript module, defined from source and trained from C++.
// Question: what does Tycho see of a model that has no C++ classes?

#include <torch/script.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <exception>
#include <iostream>

#include "arguments.h"
#include "data/tensors.h"

using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

namespace {

/// A module with the parameters of a linear layer, initialised as torch::nn::Linear initialises
/// them.
torch::jit::Module linear_layer(int64_t inputs, int64_t outputs) {
  torch::jit::Module layer("Linear");
  const double bound = 1 / std::sqrt(static_cast<double>(inputs));
  const auto uniform = [bound](torch::IntArrayRef sizes) {
    return torch::empty(sizes).uniform_(-bound, bound).requires_grad_();
  };
  layer.register_parameter("weight", uniform({outputs, inputs}), /*is_buffer=*/false);
  layer.register_parameter("bias", uniform({outputs}), /*is_buffer=*/false);
  layer.define(R"(
    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight.t())
  )");
  return layer;
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments arguments =
      parse_arguments(argc, argv, "torchscript", "Trains a TorchScript module on digits.",
                      "directory with MNIST or other images in IDX format", 3000);
  torch::manual_seed(3);
  const ImageSet digits = load_digits(arguments.data, 12000, 3);
  const auto images = image_tensor(digits).flatten(1);
  const auto labels = label_tensor(digits);
  const int64_t train_size = digits.size() * 5 / 6;

  torch::jit::Module model("Classifier");
  model.register_module("hidden", linear_layer(images.size(1), 96));
  model.register_module("head", linear_layer(96, 10));
  model.define(R"(
    def forward(self, x):
        return self.head.forward(torch.relu(self.hidden.forward(x)))
  )");
  std::vector<torch::Tensor> parameters;
  for (const auto& parameter : model.parameters()) parameters.push_back(parameter);
  torch::optim::SGD optimizer(parameters, torch::optim::SGDOptions(0.05).momentum(0.9));

  tycho::Session session(model, optimizer, tycho::SessionOptions(arguments.run));  // Tycho 1

  for (int64_t step = 0; step < arguments.steps; ++step) {
    const auto batch = torch::randint(train_size, {128}, torch::kInt64);
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model.forward({images.index_select(0, batch)}).toTensor(),
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
            << accuracy(model.forward({images.index_select(0, held_out)}).toTensor(),
                        labels.index_select(0, held_out))
            << "\nrun " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
