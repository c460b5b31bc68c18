// The same network at four widths, in LibTorch's standard parametrization and in the maximal-update
// one, trained by Adam on digits. Question: does a learning rate that was tuned on a small network
// transfer to a large one? It does if every layer's features move as much at any width:
//   tycho compare RUN/*

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "arguments.h"
#include "data/tensors.h"

namespace nn = torch::nn;
namespace optim = torch::optim;
using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

namespace {

constexpr int64_t kBaseWidth = 128;  // at which both parametrizations have the same learning rates
constexpr int64_t kBatch = 128;

enum class Parametrization { kStandard, kMaximalUpdate };

/// Parameter groups for Adam, one for each tensor, and, for maximal update, first weights. There,
/// weights of layers whose inputs grow with the width have a learning rate that is inversely
/// proportional to it, and those of the last layer begin with a standard deviation that is too. The
/// same, with Adam, as a multiplier base / width behind a last layer that is as at the base width.
std::vector<optim::OptimizerParamGroup> parametrize(nn::SequentialImpl& model, int64_t width,
                                                    Parametrization parametrization,
                                                    double learning_rate) {
  std::vector<optim::OptimizerParamGroup> groups;
  const double growth = static_cast<double>(width) / static_cast<double>(kBaseWidth);
  const torch::NoGradGuard no_grad;
  for (const auto& child : model.children()) {
    auto* layer = child->as<nn::LinearImpl>();
    if (layer == nullptr) continue;
    double weight_rate = learning_rate;
    if (parametrization == Parametrization::kMaximalUpdate) {
      const auto inputs = static_cast<double>(layer->weight.size(1));
      const bool last = layer->weight.size(0) != width;
      // Outputs that are small at first leave less to chance.
      layer->weight.normal_(0, last ? 0.25 / std::sqrt(inputs * growth) : 1 / std::sqrt(inputs));
      layer->bias.zero_();
      if (layer->weight.size(1) == width) weight_rate /= growth;
    }
    groups.emplace_back(std::vector<torch::Tensor>{layer->weight},
                        std::make_unique<optim::AdamOptions>(weight_rate));
    groups.emplace_back(std::vector<torch::Tensor>{layer->bias},
                        std::make_unique<optim::AdamOptions>(learning_rate));
  }
  return groups;
}

void train(const std::string& run, const torch::Tensor& images, const torch::Tensor& labels,
           int64_t steps, double learning_rate, int64_t width, int64_t seed,
           Parametrization parametrization) {
  torch::manual_seed(seed);
  const int64_t probe_size = 256;  // the rest is trained on
  const int64_t train_size = images.size(0) - probe_size;
  nn::Sequential model(nn::Linear(images.size(1), width), nn::ReLU(), nn::Linear(width, width),
                       nn::ReLU(), nn::Linear(width, 10));
  optim::Adam optimizer(parametrize(*model, width, parametrization, learning_rate),
                        optim::AdamOptions(learning_rate));

  const bool standard = parametrization == Parametrization::kStandard;
  tycho::Session session(
      *model, optimizer,
      tycho::SessionOptions(run)
          .preset(tycho::Preset::economy)
          .run_name((standard ? "standard " : "maximal update ") + std::to_string(width))
          .tags({standard ? "parametrization=standard" : "parametrization=maximal_update"})
          .seed(static_cast<uint64_t>(seed))
          .every("loss", 1)
          .every("features", 1)
          .every("spectral_norms", 1)
          .every("update_alignment", 1));  // Tycho 1
  // Features are those of digits that stay the same.
  const auto probe_images = images.narrow(0, train_size, probe_size);
  const auto probe_labels = labels.narrow(0, train_size, probe_size);
  tycho::ProbeLoss probe;
  probe.output = [&](int64_t) { return model->forward(probe_images); };
  probe.loss = [&](const torch::Tensor& output, int64_t) {
    return torch::cross_entropy_loss(output, probe_labels);
  };
  session.set_probe_loss(probe);

  torch::Tensor loss;
  for (int64_t step = 0; step < steps; ++step) {
    const auto batch = torch::randint(train_size, {kBatch}, torch::kInt64);
    optimizer.zero_grad();
    loss = torch::cross_entropy_loss(model->forward(images.index_select(0, batch)),
                                     labels.index_select(0, batch));
    loss.backward();
    optimizer.step();
    session.step(loss, kBatch);  // Tycho 2
  }
  session.close();  // Tycho 3
  std::cout << "run " << run << "  loss " << loss.item<double>() << "\n";
}

}  // namespace

int main(int argc, char** argv) try {
  int64_t seeds = 8;
  double learning_rate = 1e-3;
  const Arguments arguments = parse_arguments(
      argc, argv, "width_sweep", "Trains one network at four widths, in two parametrizations.",
      "directory with MNIST or other images in IDX format", 10, [&](CLI::App& app) {
        app.add_option("--seeds", seeds, "runs of each network")
            ->check(CLI::Range(1, 1000))
            ->capture_default_str();
        app.add_option("--rate", learning_rate, "learning rate at the base width")
            ->check(CLI::PositiveNumber)
            ->capture_default_str();
      });
  const ImageSet digits = load_digits(arguments.data, 4000, 1);
  const auto images = image_tensor(digits).flatten(1);
  const auto labels = label_tensor(digits);
  for (const auto parametrization : {Parametrization::kStandard, Parametrization::kMaximalUpdate}) {
    const bool standard = parametrization == Parametrization::kStandard;
    for (int64_t seed = 1; seed <= seeds; ++seed) {
      for (int64_t width = kBaseWidth; width <= 8 * kBaseWidth; width *= 2) {
        const std::string run = arguments.run + "/" + (standard ? "standard" : "maximal_update") +
                                "-" + std::to_string(width) + "-" + std::to_string(seed);
        train(run, images, labels, arguments.steps, learning_rate, width, seed, parametrization);
      }
    }
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
