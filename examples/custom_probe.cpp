// A custom statistic, scheduled, recorded, exported and plotted like a built-in one.
// Question: in how many of its coordinates does the update go against the gradient of the batch?

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <exception>
#include <iostream>
#include <memory>
#include <utility>
#include <vector>

#include "arguments.h"
#include "data/tensors.h"

using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

namespace {

/// The share of coordinates i with g_i * (w_after - w_before)_i < 0. Plain gradient descent has 1
/// wherever the gradient is not zero; momentum less, the more it remembers directions that the
/// batch no longer supports.
class DescentShare : public tycho::Probe {
 public:
  std::string name() const override { return "descent_share"; }

  std::vector<tycho::v1::StatisticDefinition> statistics() const override {
    return {tycho::define_statistic(
        "descent_share", "P(g u < 0)", "1", {tycho::v1::SCOPE_PARAMETER},
        "Share of coordinates in which the update u goes against the batch gradient g.",
        "examples/custom_probe.cpp")};
  }

  tycho::Needs needs() const override {
    tycho::Needs needs;
    needs.gradients = true;
    needs.previous_weights = true;
    return needs;
  }

  /// Runs on the training thread at a scheduled step: numbers stay on the device until they are
  /// sent together.
  Finish observe(const tycho::StepView& step, tycho::Transfer& transfer) override {
    std::vector<std::pair<uint32_t, size_t>> sent;  // parameter, slot
    for (const auto& info : step.model->parameters) {
      const auto& seen = (*step.parameters)[info.id];
      if (!seen.gradient.defined() || !seen.previous_weight.defined()) continue;
      const auto update = info.tensor.detach() - seen.previous_weight;
      sent.emplace_back(info.id,
                        transfer.send((update * seen.gradient).lt(0).to(torch::kFloat64).mean()));
    }
    return [sent](const tycho::Arrived& arrived, tycho::Recorder& recorder) {
      for (const auto& [parameter, slot] : sent) {
        recorder.parameter("descent_share", parameter, arrived.value(slot),
                           tycho::Recorder::kUnknown);
      }
    };
  }
};

}  // namespace

int main(int argc, char** argv) try {
  const Arguments arguments =
      parse_arguments(argc, argv, "custom_probe", "Trains with a custom probe.",
                      "directory with MNIST or other images in IDX format", 800);
  torch::manual_seed(7);
  const ImageSet digits = load_digits(arguments.data, 12000, 7);
  const auto images = image_tensor(digits).flatten(1);
  const auto labels = label_tensor(digits);

  torch::nn::Sequential model(torch::nn::Linear(images.size(1), 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 10));
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));

  tycho::Session session(*model, optimizer, tycho::SessionOptions(arguments.run));
  session.add_probe(std::make_unique<DescentShare>(), /*every=*/5);

  for (int64_t step = 0; step < arguments.steps; ++step) {
    const auto batch = torch::randint(digits.size(), {128}, torch::kInt64);
    optimizer.zero_grad();
    auto loss = torch::cross_entropy_loss(model->forward(images.index_select(0, batch)),
                                          labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    session.step(loss, batch.size(0));
    if (step % 100 == 0) std::cout << "step " << step << "  loss " << loss.item<double>() << "\n";
  }
  session.close();
  std::cout << "run " << arguments.run << "\nsee it with: tycho export " << arguments.run
            << " --format csv | grep descent_share\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
