// A fully connected network on handwritten digits, with a learning rate that is ten times too
// large. Question: what does a trainer gain by listening to alarms? The first run does not listen
// and is lost within a few steps. The second hears the alarm, goes back to earlier weights, lowers
// its rate, and learns.

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cstdint>
#include <deque>
#include <exception>
#include <iostream>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "data/tensors.h"

using namespace tycho::examples;  // NOLINT(google-build-using-namespace)

namespace {

/// What the session's listener tells the trainer: listeners run on a separate thread, and only
/// the trainer may touch the model.
class Alarms {
 public:
  void raise(const tycho::Finding& finding) {
    std::cout << "  " << describe(finding) << "\n";
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!began_ || finding.window_begin < *began_) began_ = finding.window_begin;
  }
  /// The step at which it began.
  std::optional<int64_t> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(began_, std::nullopt);
  }

 private:
  std::mutex mutex_;
  std::optional<int64_t> began_;
};

/// The weights of some earlier steps.
class Checkpoints {
 public:
  void save(int64_t step, const std::vector<at::Tensor>& parameters) {
    std::vector<at::Tensor> copy;
    for (const at::Tensor& parameter : parameters) copy.push_back(parameter.detach().clone());
    saved_.emplace_back(step, std::move(copy));
    if (saved_.size() > 8) saved_.erase(saved_.begin() + 1);  // The first weights are kept.
  }
  /// Back to the last ones that were saved before `step`.
  void restore(int64_t step, const std::vector<at::Tensor>& parameters) {
    while (saved_.size() > 1 && saved_.back().first >= step) saved_.pop_back();
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < parameters.size(); ++i) parameters[i].copy_(saved_.back().second[i]);
  }

 private:
  std::deque<std::pair<int64_t, std::vector<at::Tensor>>> saved_;
};

struct Data {
  at::Tensor images, labels;
  int64_t train_size = 0;
};

/// Returns the share of held-out digits that the trained network gets right.
double train(const Arguments& arguments, const Data& data, uint64_t seed, double rate,
             bool listens) {
  torch::manual_seed(seed);
  torch::nn::Sequential model(torch::nn::Linear(data.images.size(1), 64), torch::nn::ReLU(),
                              torch::nn::Linear(64, 32), torch::nn::ReLU(),
                              torch::nn::Linear(32, 10));
  torch::optim::SGD optimizer(model->parameters(), rate);
  Alarms alarms;
  Checkpoints checkpoints;

  const std::string run = arguments.run + (listens ? "/guarded" : "/deaf");
  // The loss of every step is worth having: alarms are as fast as it is.
  tycho::Session session(*model, optimizer,
                         tycho::SessionOptions(run).every("loss", 1));  // Tycho 1
  if (listens) {
    session.on_finding([&](const tycho::Finding& finding) {
      if (finding.is_alarm() && finding.severity == tycho::Severity::kAlarm) alarms.raise(finding);
    });
  }

  for (int64_t step = 0; step < arguments.steps; ++step) {
    if (const auto began = alarms.take()) {
      rate /= 4;
      checkpoints.restore(*began, model->parameters());
      for (auto& group : optimizer.param_groups())
        static_cast<torch::optim::SGDOptions&>(group.options()).lr(rate);
      std::cout << "  step " << step << ": back to the weights before step " << *began
                << ", at learning rate " << rate << "\n";
    } else if (listens && step % 10 == 0) {
      checkpoints.save(step, model->parameters());
    }
    const auto batch = torch::randint(data.train_size, {64}, torch::kInt64);
    const auto target = torch::one_hot(data.labels.index_select(0, batch), 10).to(torch::kFloat32);
    optimizer.zero_grad();
    auto loss =
        (model->forward(data.images.index_select(0, batch)) - target).square().sum(1).mean();
    loss.backward();
    optimizer.step();
    session.step(loss, batch.size(0));  // Tycho 2
  }
  session.close();  // Tycho 3

  const torch::NoGradGuard no_grad;
  const auto held_out = torch::arange(data.train_size, data.images.size(0));
  return accuracy(model->forward(data.images.index_select(0, held_out)),
                  data.labels.index_select(0, held_out));
}

}  // namespace

int main(int argc, char** argv) try {
  uint64_t seed = 1;
  double rate = 2;  // ten times what learns well
  const Arguments arguments = parse_arguments(
      argc, argv, "guarded_training",
      "Trains at ten times a good learning rate, first ignoring alarms, then reacting to them.",
      "directory with MNIST or other images in IDX format", 1500, [&](CLI::App& app) {
        app.add_option("--seed", seed, "seed of the weights and the batches");
        app.add_option("--rate", rate, "learning rate to begin with")->capture_default_str();
      });
  const ImageSet digits = load_digits(arguments.data, 6000, 1);
  const Data data{image_tensor(digits).flatten(1), label_tensor(digits), digits.size() * 5 / 6};

  std::cout << "without listening\n";
  const double deaf = train(arguments, data, seed, rate, false);
  std::cout << "  accuracy on held-out digits " << deaf << "\nlistening\n";
  const double guarded = train(arguments, data, seed, rate, true);
  std::cout << "  accuracy on held-out digits " << guarded << "\nrun " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
