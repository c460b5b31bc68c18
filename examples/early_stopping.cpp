// A fully connected network on a few handwritten digits, some of which have a wrong label: it
// learns the digits first and the wrong labels later. Question: when should training stop? The
// trainer gives the session its held-out loss, keeps the best weights, and stops when it hears that
// the held-out loss has risen.

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <atomic>
#include <exception>
#include <iostream>
#include <limits>
#include <vector>

#include "arguments.h"
#include "data/tensors.h"

using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

int main(int argc, char** argv) try {
  const Arguments arguments = parse_arguments(
      argc, argv, "early_stopping", "Trains on a few digits until the held-out loss rises.",
      "directory with MNIST or other images in IDX format", 4000);
  torch::manual_seed(1);
  const ImageSet digits = load_digits(arguments.data, 3000, 1);
  const auto images = image_tensor(digits).flatten(1);
  const auto labels = label_tensor(digits);
  const int64_t train_size = digits.size() / 4;
  const auto held_out_images = images.narrow(0, train_size, digits.size() - train_size);
  const auto held_out_labels = labels.narrow(0, train_size, digits.size() - train_size);
  const auto wrong = torch::rand({train_size}).lt(0.15);
  const auto train_labels =
      torch::where(wrong, torch::randint(10, {train_size}), labels.narrow(0, 0, train_size));

  torch::nn::Sequential model(torch::nn::Linear(images.size(1), 256), torch::nn::ReLU(),
                              torch::nn::Linear(256, 10));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));

  std::atomic<bool> stop{false};
  tycho::Session session(*model, optimizer, tycho::SessionOptions(arguments.run));  // Tycho 1
  session.on_finding([&](const tycho::Finding& finding) {
    if (!finding.is_alarm() || finding.law != "overfitting") return;
    std::cout << "  " << describe(finding) << "\n";
    stop = true;
  });

  double lowest = std::numeric_limits<double>::infinity();
  std::vector<at::Tensor> best;
  int64_t step = 0;
  for (; step < arguments.steps && !stop; ++step) {
    const auto batch = torch::randint(train_size, {64}, torch::kInt64);
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model->forward(images.index_select(0, batch)),
                                          train_labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    session.step(loss, batch.size(0));  // Tycho 2
    if (step % 20 != 0) continue;
    const torch::NoGradGuard no_grad;
    const double held_out =
        torch::cross_entropy_loss(model->forward(held_out_images), held_out_labels).item<double>();
    session.validation(held_out);
    if (step % 200 == 0)
      std::cout << "step " << step << "  loss " << loss.item<double>() << "  held out " << held_out
                << "\n";
    if (held_out >= lowest) continue;
    lowest = held_out;
    best.clear();
    for (const auto& parameter : model->parameters()) best.push_back(parameter.detach().clone());
  }
  session.close();  // Tycho 3

  const torch::NoGradGuard no_grad;
  const double last = accuracy(model->forward(held_out_images), held_out_labels);
  const auto parameters = model->parameters();
  for (size_t i = 0; i < best.size(); ++i) parameters[i].copy_(best[i]);
  std::cout << (stop ? "stopped after " : "not stopped in ") << step
            << " steps\naccuracy on held-out digits: " << last << ", with the best weights "
            << accuracy(model->forward(held_out_images), held_out_labels) << "\nrun "
            << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
