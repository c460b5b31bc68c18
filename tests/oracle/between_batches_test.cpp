// How far the gradients of two batches lie apart, against gradients that the test computes at the
// weights before both steps, and against tr Sigma of one batch where examples are independent and
// where they are not.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

struct Settings {
  int steps = 40;
  int copies = 1;      ///< of each example in its batch
  double cluster = 0;  ///< what the inputs of a batch have in common
  double rate = 0.05;
  bool mean = true;
  at::ScalarType type = at::kDouble;
  std::function<int64_t(int step)> batch = [](int) { return 16; };
  int every = 2;
};

struct Batch {
  at::Tensor x;
  at::Tensor y;
};

/// What was recorded, and what it takes to compute it again.
struct Observed {
  RunContents contents;
  nn::Sequential model;
  std::vector<std::vector<at::Tensor>> weights;  ///< before each step
  std::vector<Batch> batches;
};

at::Tensor squared_errors(nn::Sequential& model, const Batch& batch) {
  return (model->forward(batch.x) - batch.y).square().sum(1);
}

/// Of the mean loss at the weights the model has, flat, float64.
at::Tensor gradient_of(nn::Sequential& model, const Batch& batch) {
  std::vector<at::Tensor> flat;
  const auto loss = squared_errors(model, batch).mean();
  for (const auto& each : torch::autograd::grad({loss}, model->parameters()))
    flat.push_back(each.flatten().to(at::kDouble));
  return at::cat(flat);
}

double norm_sq(const at::Tensor& tensor) { return tensor.square().sum().item<double>(); }

Batch draw(const Settings& settings, int step) {
  const int64_t size = settings.batch(step) / settings.copies;
  const auto common = settings.cluster * torch::randn({1, 20}, settings.type);
  return {(torch::randn({size, 20}, settings.type) + common).repeat({settings.copies, 1}),
          torch::randn({size, 3}, settings.type).repeat({settings.copies, 1})};
}

Observed train(const Settings& settings) {
  const auto directory =
      std::filesystem::temp_directory_path() / ("tycho_between_" + std::to_string(getpid()));
  std::filesystem::remove_all(directory);
  nn::Sequential model(nn::Linear(20, 30), nn::Tanh(), nn::Linear(30, 3));
  model->to(settings.type);
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(settings.rate).momentum(0.5));
  std::vector<std::vector<at::Tensor>> weights;
  std::vector<Batch> batches;
  {
    Session session(*model, optimizer,
                    SessionOptions(directory.string())
                        .preset(Preset::economy)
                        .loss_reduction(settings.mean ? Reduction::mean : Reduction::sum)
                        .every("between_batches", settings.every));
    for (int step = 0; step < settings.steps; ++step) {
      batches.push_back(draw(settings, step));
      weights.emplace_back();
      for (const auto& parameter : model->parameters())
        weights.back().push_back(parameter.detach().clone());
      optimizer.zero_grad();
      const auto errors = squared_errors(model, batches.back());
      const auto loss = settings.mean ? errors.mean() : errors.sum();
      loss.backward();
      optimizer.step();
      session.step(loss, batches.back().x.size(0));
    }
  }
  Observed result{RunContents(directory.string()), model, std::move(weights), std::move(batches)};
  std::filesystem::remove_all(directory);
  EXPECT_EQ(result.contents.events.count("probe_fault_between_batches"), 0U);
  return result;
}

std::vector<int64_t> steps_of(const Observed& run) {
  std::vector<int64_t> steps;
  const auto found = run.contents.values.find("between_batch_trace");
  if (found == run.contents.values.end()) return steps;
  for (const auto& [step, value] : found->second) steps.push_back(step);
  return steps;
}

void expect_exact(Observed run, double tolerance) {
  for (const int64_t step : steps_of(run)) {
    const auto first = static_cast<size_t>(step - 1);
    {
      const torch::NoGradGuard no_grad;
      for (size_t p = 0; p < run.weights[first].size(); ++p)
        run.model->parameters()[p].copy_(run.weights[first][p]);
    }
    const Batch& batch = run.batches[first];
    const Batch& next = run.batches[first + 1];
    const auto own = static_cast<double>(batch.x.size(0));
    const auto other = static_cast<double>(next.x.size(0));
    const at::Tensor gradient = gradient_of(run.model, batch);
    const double between = norm_sq(gradient - gradient_of(run.model, next)) / (1 / own + 1 / other);
    double squares = 0;
    for (int64_t i = 0; i < batch.x.size(0); ++i)
      squares +=
          norm_sq(gradient_of(run.model, {batch.x.narrow(0, i, 1), batch.y.narrow(0, i, 1)}));
    const double within = own / (own - 1) * (squares / own - norm_sq(gradient));
    EXPECT_NEAR(run.contents.at("between_batch_trace", step) / between, 1, tolerance);
    EXPECT_NEAR(run.contents.at("within_batch_trace", step) / within, 1, tolerance);
  }
}

// At the weights before both steps, whatever the optimizer did in between.
TEST(BetweenBatches, AreDistancesAtTheSameWeights) {
  torch::manual_seed(std::random_device{}());
  for (const bool mean : {true, false}) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      Settings settings;
      settings.mean = mean;
      settings.type = type;
      settings.rate = mean ? 0.05 : 0.003;
      settings.batch = [](int step) { return step % 3 == 2 ? 8 : 16; };
      const Observed run = train(settings);
      EXPECT_GE(steps_of(run).size(), 15U);
      expect_exact(run, type == at::kDouble ? 1e-9 : 1e-3);
    }
  }
}

// Two steps in a row, however seldom.
TEST(BetweenBatches, TakeTwoStepsInARowWhenever) {
  torch::manual_seed(std::random_device{}());
  Settings settings;
  settings.every = 20;
  settings.steps = 65;
  const Observed run = train(settings);
  EXPECT_EQ(steps_of(run), (std::vector<int64_t>{21, 41, 61}));
  expect_exact(run, 1e-9);
}

double between_over_within(const Settings& settings) {
  const Observed run = train(settings);
  double between = 0;
  double within = 0;
  for (const int64_t step : steps_of(run)) {
    between += run.contents.at("between_batch_trace", step);
    within += run.contents.at("within_batch_trace", step);
  }
  return between / within;
}

// Also at a learning rate at which the gradient itself moves more than its noise.
TEST(BetweenBatches, AgreeWithTheNoiseWithinABatchUnlessExamplesAreCoupled) {
  torch::manual_seed(std::random_device{}());
  Settings settings;
  settings.steps = 200;
  for (const double rate : {0.0, 0.05, 0.12}) {
    settings.rate = rate;
    EXPECT_NEAR(between_over_within(settings), 1, 0.25) << rate;
  }
  settings.rate = 0.002;
  settings.cluster = 3;
  EXPECT_GT(between_over_within(settings), 1.5);
  settings.rate = 0.05;
  settings.cluster = 0;
  settings.copies = 4;
  EXPECT_NEAR(between_over_within(settings) / (4 * 15.0 / 12), 1, 0.3);
}

TEST(BetweenBatches, ABatchOfOneIsSaid) {
  Settings settings;
  settings.steps = 10;
  settings.batch = [](int) { return 1; };
  const Observed run = train(settings);
  EXPECT_TRUE(steps_of(run).empty());
  EXPECT_EQ(run.contents.events.count("between_batches_needs_two_examples"), 1U);
}

}  // namespace
}  // namespace tycho
