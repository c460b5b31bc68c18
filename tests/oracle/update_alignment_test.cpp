// Alignment of updates with the inputs that they meet, against dense matrices.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

double largest(const at::Tensor& matrix) {
  return torch::linalg_svdvals(matrix).max().item<double>();
}

/// Records one step in which each weight changes by what `updates` gives, or else by the optimizer.
template <typename Model>
RunContents one_step(Model model, const at::Tensor& x, const std::string& name,
                     const std::map<std::string, at::Tensor>& updates = {}) {
  const auto directory = std::filesystem::temp_directory_path() /
                         ("tycho_alignment_" + name + "_" + std::to_string(getpid()));
  std::filesystem::remove_all(directory);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1));
  {
    Session session(
        *model, optimizer,
        SessionOptions(directory.string()).preset(Preset::economy).every("update_alignment", 1));
    const auto loss_of = [&] { return model->forward(x).square().mean(); };
    session.set_probe_loss(loss_of);
    optimizer.zero_grad();
    const auto loss = loss_of();
    loss.backward();
    if (updates.empty()) {
      optimizer.step();
    } else {
      const torch::NoGradGuard no_grad;
      auto parameters = model->named_parameters();
      for (const auto& [path, update] : updates) parameters[path].add_(update);
    }
    session.step(loss, x.size(0));
  }
  RunContents contents(directory.string());
  std::filesystem::remove_all(directory);
  EXPECT_EQ(contents.events.count("probe_fault_update_alignment"), 0U) << name;
  return contents;
}

TEST(UpdateAlignment, IsThatOfDenseMatricesInALinearLayer) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(7, 12));
  model->to(torch::kFloat64);
  const auto x = torch::randn({20, 7}, torch::kFloat64);
  const auto before = model->parameters()[0].detach().clone();
  const auto contents = one_step(model, x, "linear");
  const auto update = model->parameters()[0].detach() - before;
  const double expected =
      (torch::matmul(x, update.t()).norm() / x.norm()).item<double>() / largest(update);
  EXPECT_GE(contents.at("update_alignment@0", 0), expected * (1 - 1e-9));
  EXPECT_LE(contents.at("update_alignment@0", 0), expected * 1.02);
  EXPECT_LE(contents.at("update_alignment@0", 0), 1.02);
}

TEST(UpdateAlignment, IsOneAlongTheInputsAndZeroAcrossThem) {
  torch::manual_seed(2);
  nn::Sequential model(nn::Linear(6, 6));
  model->to(torch::kFloat64);
  const auto direction = torch::randn({6}, torch::kFloat64);
  const auto x = torch::outer(torch::randn({9}, torch::kFloat64), direction);
  auto across = torch::randn({6}, torch::kFloat64);
  across -= direction * torch::dot(across, direction) / torch::dot(direction, direction);
  const auto left = torch::randn({6}, torch::kFloat64);
  const auto along = one_step(model, x, "along", {{"0.weight", torch::outer(left, direction)}});
  EXPECT_NEAR(along.at("update_alignment@0", 0), 1, 1e-9);
  const auto none = one_step(model, x, "across", {{"0.weight", torch::outer(left, across)}});
  EXPECT_NEAR(none.at("update_alignment@0", 0), 0, 1e-9);
  // An update that is zero has no direction.
  const auto still = one_step(model, x, "still", {{"0.bias", torch::ones({6}, torch::kFloat64)}});
  EXPECT_FALSE(still.has("update_alignment@0"));
}

TEST(UpdateAlignment, OfAConvolutionIsThatOfItsOperator) {
  torch::manual_seed(3);
  nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(2, 3, 3).stride(2).padding(1)));
  model->to(torch::kFloat64);
  const auto x = torch::randn({5, 2, 6, 7}, torch::kFloat64);
  const auto before = model->parameters()[0].detach().clone();
  const auto contents = one_step(model, x, "convolution");
  const auto update = model->parameters()[0].detach() - before;
  const auto apply = [&](const at::Tensor& input) {
    return torch::conv2d(input, update, {}, 2, 1);
  };
  std::vector<at::Tensor> columns;
  const auto identity = torch::eye(2 * 6 * 7, torch::kFloat64);
  for (int64_t i = 0; i < identity.size(0); ++i) {
    columns.push_back(apply(identity[i].view({1, 2, 6, 7})).reshape(-1));
  }
  const double expected =
      (apply(x).norm() / x.norm()).item<double>() / largest(torch::stack(columns, 1));
  EXPECT_GE(contents.at("update_alignment@0", 0), expected * (1 - 1e-9));
  EXPECT_LE(contents.at("update_alignment@0", 0), expected * 1.02);
}

TEST(UpdateAlignment, OfAnEmbeddingCountsEachSymbolAsAUnitVector) {
  torch::manual_seed(4);
  nn::Sequential model(nn::Embedding(5, 3));
  model->to(torch::kFloat64);
  const auto symbols = torch::tensor({{0, 1, 1}, {4, 2, 0}});
  const auto before = model->parameters()[0].detach().clone();
  const auto contents = one_step(model, symbols, "embedding");
  const auto update = model->parameters()[0].detach() - before;
  const double moved = update.index_select(0, symbols.reshape(-1)).norm().item<double>();
  const double expected = moved / std::sqrt(6.0) / largest(update);
  EXPECT_GE(contents.at("update_alignment@0", 0), expected * (1 - 1e-9));
  EXPECT_LE(contents.at("update_alignment@0", 0), expected * 1.02);
}

}  // namespace
}  // namespace tycho
