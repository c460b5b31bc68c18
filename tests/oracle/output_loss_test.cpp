// What a loss is as a function of the network's output, found from its derivatives alone.
#include "curvature/output_loss.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

namespace tycho {
namespace {

namespace F = torch::nn::functional;
using Loss = std::function<at::Tensor(const at::Tensor&)>;

at::Tensor logits(at::IntArrayRef shape, at::ScalarType type = at::kDouble) {
  torch::manual_seed(3);
  return 2 * torch::randn(shape).to(type);
}

double entropy_of(const at::Tensor& z, int64_t along) {
  const auto l = torch::log_softmax(z.to(at::kDouble), along);
  return -(l.exp() * l).sum().item<double>();
}

TEST(OutputLoss, CrossEntropyOverRowsPositionsAndTheLastDimension) {
  const auto target = torch::randint(5, {7});
  const auto z = logits({7, 5});
  const OutputLoss rows =
      identify_output_loss(z, [&](const at::Tensor& o) { return F::cross_entropy(o, target); });
  ASSERT_EQ(rows.kind, OutputLoss::kCrossEntropy);
  EXPECT_NEAR(rows.curvature, 1.0 / 7, 1e-9);
  EXPECT_EQ(rows.terms, 7);
  EXPECT_NEAR(rows.value, F::cross_entropy(z, target).item<double>(), 1e-12);
  EXPECT_NEAR(rows.entropy, entropy_of(z, 1) / 7, 1e-9);

  const auto deep = logits({4, 5, 3});
  const auto positions = torch::randint(5, {4, 3});
  const OutputLoss by_position = identify_output_loss(
      deep, [&](const at::Tensor& o) { return 3 * F::cross_entropy(o, positions); });
  ASSERT_EQ(by_position.kind, OutputLoss::kCrossEntropy);
  EXPECT_NEAR(by_position.curvature, 3.0 / 12, 1e-9);
  EXPECT_EQ(by_position.terms, 12);

  const auto tokens = logits({4, 3, 6}, at::kFloat);
  const auto next = torch::randint(6, {4, 3});
  const OutputLoss language = identify_output_loss(tokens, [&](const at::Tensor& o) {
    return F::cross_entropy(o.flatten(0, 1), next.flatten());
  });
  ASSERT_EQ(language.kind, OutputLoss::kCrossEntropy);
  EXPECT_NEAR(language.curvature, 1.0 / 12, 1e-5);
}

TEST(OutputLoss, CrossEntropyThatIsNearlyZeroInSinglePrecision) {
  for (const float margin : {5.0F, 9.0F, 11.0F, 13.0F, 16.0F}) {
    const auto target = torch::randint(10, {128});
    auto z = logits({128, 10}, at::kFloat) / 4;
    z.scatter_(1, target.unsqueeze(1), margin);
    // Some are so sure that every gradient of the row is 0, or but one.
    for (int64_t row = 0; row < 40; ++row) {
      z[row] -= 200;
      z[row][target[row].item<int64_t>()] = row % 2 == 0 ? 10 : -190;
      z[row][(target[row].item<int64_t>() + 1) % 10] = -13;
    }
    z += 20;
    const OutputLoss found =
        identify_output_loss(z, [&](const at::Tensor& o) { return F::cross_entropy(o, target); });
    ASSERT_EQ(found.kind, OutputLoss::kCrossEntropy) << margin;
    EXPECT_EQ(found.classes, 10);
    EXPECT_NEAR(found.curvature, 1.0 / 128, 1e-4 / 128) << margin;
  }
}

TEST(OutputLoss, IgnoredRowsDoNotCount) {
  auto target = torch::randint(5, {7});
  target[2] = -100;
  target[5] = -100;
  const OutputLoss found = identify_output_loss(
      logits({7, 5}), [&](const at::Tensor& o) { return F::cross_entropy(o, target); });
  ASSERT_EQ(found.kind, OutputLoss::kCrossEntropy);
  EXPECT_EQ(found.terms, 5);
  EXPECT_NEAR(found.curvature, 1.0 / 5, 1e-9);
}

TEST(OutputLoss, SquaredErrorOfAnyWeight) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    const auto z = logits({6, 3}, type);
    const auto y = torch::randn({6, 3}).to(type);
    const OutputLoss mean =
        identify_output_loss(z, [&](const at::Tensor& o) { return F::mse_loss(o, y); });
    ASSERT_EQ(mean.kind, OutputLoss::kSquaredError);
    EXPECT_NEAR(mean.curvature, 2.0 / 18, 1e-4);
    EXPECT_EQ(mean.terms, 18);
    const OutputLoss half = identify_output_loss(
        z, [&](const at::Tensor& o) { return 0.5 * (o - y).square().sum(1).mean(); });
    ASSERT_EQ(half.kind, OutputLoss::kSquaredError);
    EXPECT_NEAR(half.curvature, 1.0 / 6, 1e-4);
  }
}

TEST(OutputLoss, WhatIsNeitherIsUnknown) {
  const auto z = logits({7, 5});
  const auto target = torch::randint(5, {7});
  const auto y = torch::randn({7, 5}, torch::kDouble);
  const auto weights = torch::linspace(1, 2, 5, torch::kDouble);
  const std::vector<Loss> others = {
      [&](const at::Tensor& o) {
        return F::cross_entropy(o, target, F::CrossEntropyFuncOptions().label_smoothing(0.1));
      },
      [&](const at::Tensor& o) {
        return F::cross_entropy(o, target, F::CrossEntropyFuncOptions().weight(weights));
      },
      [&](const at::Tensor& o) { return F::cross_entropy(o, target) + 0.01 * o.square().mean(); },
      [&](const at::Tensor& o) { return F::smooth_l1_loss(o, y); },
      [&](const at::Tensor& o) { return F::mse_loss(o, y) + 1; },
      [&](const at::Tensor& o) { return (weights * (o - y).square()).mean(); },
      [&](const at::Tensor& o) { return o.mean(); },
      [&](const at::Tensor& o) { return F::binary_cross_entropy_with_logits(o, y.sigmoid()); },
      [&](const at::Tensor&) { return torch::ones({}, torch::kDouble); },
  };
  for (size_t i = 0; i < others.size(); ++i) {
    const OutputLoss found = identify_output_loss(z, others[i]);
    EXPECT_EQ(found.kind, OutputLoss::kUnknown) << i;
    EXPECT_FALSE(found.why_unknown.empty()) << i;
  }
  EXPECT_EQ(identify_output_loss(torch::zeros({0, 3}), others[3]).kind, OutputLoss::kUnknown);
  EXPECT_EQ(identify_output_loss(z * std::nan(""), others[4]).kind, OutputLoss::kUnknown);
}

}  // namespace
}  // namespace tycho
