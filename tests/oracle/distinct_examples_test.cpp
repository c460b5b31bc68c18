// Copies in a batch, found by the norms of single examples' gradients.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

struct Batch {
  at::Tensor x;
  at::Tensor y;
};

/// One step at each batch with a rate of 0; what was recorded.
RunContents observe(nn::Sequential& model, const std::vector<Batch>& batches) {
  const auto directory =
      std::filesystem::temp_directory_path() / ("tycho_distinct_" + std::to_string(getpid()));
  std::filesystem::remove_all(directory);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0));
  {
    Session session(
        *model, optimizer,
        SessionOptions(directory.string()).preset(Preset::economy).every("distinct_examples", 1));
    for (const Batch& batch : batches) {
      optimizer.zero_grad();
      const auto loss = nn::functional::cross_entropy(model->forward(batch.x), batch.y);
      loss.backward();
      optimizer.step();
      session.step(loss, batch.x.size(0));
    }
  }
  RunContents contents(directory.string());
  std::filesystem::remove_all(directory);
  EXPECT_EQ(contents.events.count("probe_fault_distinct_examples"), 0U);
  return contents;
}

TEST(DistinctExamples, CopiesAreCountedWhereverTheyStand) {
  torch::manual_seed(std::random_device{}());
  for (const int64_t copies : {2, 3, 8}) {
    nn::Sequential model(nn::Linear(6, 9), nn::ReLU(), nn::Linear(9, 4));
    const auto order = torch::randperm(48);
    const Batch batch{torch::randn({48 / copies, 6}).repeat({copies, 1}).index_select(0, order),
                      torch::randint(4, {48 / copies}).repeat({copies}).index_select(0, order)};
    const RunContents contents = observe(model, {batch, batch});
    EXPECT_NEAR(contents.at("distinct_examples", 0), 1.0 / static_cast<double>(copies), 1e-12);
    EXPECT_NEAR(contents.at("distinct_examples", 1), 1.0 / static_cast<double>(copies), 1e-12);
  }
}

TEST(DistinctExamples, DropoutMakesCopiesDiffer) {
  torch::manual_seed(std::random_device{}());
  nn::Sequential model(nn::Linear(6, 30), nn::ReLU(), nn::Dropout(0.5), nn::Linear(30, 4));
  const Batch batch{torch::randn({4, 6}).repeat({4, 1}), torch::randint(4, {4}).repeat({4})};
  EXPECT_EQ(observe(model, {batch}).at("distinct_examples", 0), 1);
}

// Examples without a gradient tell nothing.
TEST(DistinctExamples, ZerosAreNotCounted) {
  torch::manual_seed(std::random_device{}());
  nn::Sequential model(nn::Linear(nn::LinearOptions(6, 4).bias(false)));
  auto x = torch::randn({16, 6});
  x.narrow(0, 0, 8).zero_();
  const Batch batch{x, torch::randint(4, {16})};
  EXPECT_EQ(observe(model, {batch}).at("distinct_examples", 0), 1);
  const Batch equal{torch::ones({16, 6}), torch::ones({16}, torch::kLong)};
  const RunContents contents = observe(model, {equal});
  EXPECT_NEAR(contents.at("distinct_examples", 0), 1.0 / 16, 1e-12);
}

// Behind units that are all silent only the last bias has a gradient, the same for a whole class.
TEST(DistinctExamples, ASilentNetworkSaysNothingOfCopies) {
  torch::manual_seed(std::random_device{}());
  nn::Sequential model(nn::Linear(6, 9), nn::ReLU(), nn::Linear(9, 4));
  {
    const torch::NoGradGuard no_grad;
    model->parameters()[1].fill_(-1000);
  }
  const Batch batch{torch::randn({32, 6}), torch::randint(4, {32})};
  const RunContents contents = observe(model, {batch});
  EXPECT_EQ(contents.values.count("distinct_examples"), 0U);
}

TEST(DistinctExamples, DifferentExamplesAreAllCounted) {
  torch::manual_seed(std::random_device{}());
  for (const int64_t size : {2, 7, 500}) {
    nn::Sequential model(nn::Linear(6, 9), nn::ReLU(), nn::Linear(9, 4));
    const Batch batch{torch::randn({size, 6}), torch::randint(4, {size})};
    EXPECT_EQ(observe(model, {batch}).at("distinct_examples", 0), 1) << size;
  }
}

}  // namespace
}  // namespace tycho
