#include "parameter_sums.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "tensor_sums.h"

namespace tycho {
namespace {

at::Tensor brute_force(const SumsInput& input) {
  const auto w = input.previous.to(at::kDouble).reshape(-1);
  const auto g = input.gradient.to(at::kDouble).reshape(-1);
  const auto u = input.weight.to(at::kDouble).reshape(-1) - w;
  return torch::stack({w.dot(w), g.dot(g), u.dot(u), w.dot(g), w.dot(u), g.dot(u)});
}

TEST(ParameterSums, AgreesWithFloat64InEveryDtypeAndRefreshesTheSnapshot) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    for (const int64_t size : {0, 1, 7, 8, 1000, 100003}) {
      torch::manual_seed(1);
      const auto make = [&] { return torch::randn({size}).to(dtype); };
      SumsInput input{make(), make(), make()};
      const auto expected = brute_force(input);
      const auto sums = parameter_sums({input}, true).sums[0];
      EXPECT_TRUE(torch::allclose(sums, expected, 1e-11, 1e-11)) << dtype << " " << size;
      EXPECT_TRUE(torch::equal(input.previous, input.weight));
    }
  }
}

TEST(ParameterSums, OtherLayoutsTakeTheSlowWayToTheSameNumbers) {
  torch::manual_seed(2);
  SumsInput input{torch::randn({6, 5}).t(), torch::randn({5, 6}), torch::randn({5, 6})};
  const auto expected = brute_force(input);
  const auto weight = input.weight.clone();
  EXPECT_TRUE(torch::allclose(parameter_sums({input}, true).sums[0], expected, 1e-12, 1e-12));
  EXPECT_TRUE(torch::equal(input.previous, weight));
}

TEST(ParameterSums, EachRowTakesItsOwnWay) {
  torch::manual_seed(4);
  const std::vector<SumsInput> inputs = {
      {torch::randn({40000}), torch::randn({40000}), torch::randn({40000})},
      {torch::randn({6, 5}).t(), torch::randn({5, 6}), torch::randn({5, 6})},
      {torch::randn({3}, at::kDouble), torch::randn({3}), torch::randn({3}, at::kDouble)},
      {torch::randn({70000}, at::kDouble), torch::randn({70000}, at::kDouble),
       torch::randn({70000}, at::kDouble)}};
  const auto sums = parameter_sums(inputs, false).sums;
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(
        torch::allclose(sums[static_cast<int64_t>(i)], brute_force(inputs[i]), 1e-11, 1e-11))
        << i;
  }
}

TEST(ParameterSums, NothingToSum) {
  EXPECT_EQ(parameter_sums({}, true).sums.sizes(), (std::vector<int64_t>{0, kParameterSums}));
}

TEST(ParameterSums, WhatIsNotThereIsNan) {
  const auto weight = torch::ones({3});
  const auto sums = parameter_sums({{weight, {}, {}}}, false).sums[0];
  EXPECT_EQ(sums[kWeightSquare].item<double>(), 3);
  for (const int64_t i :
       {kGradientSquare, kUpdateSquare, kWeightGradient, kWeightUpdate, kGradientUpdate}) {
    EXPECT_TRUE(std::isnan(sums[i].item<double>()));
  }
}

TEST(ParameterSums, LeavesOutGradientsThatAreNotThoseOfTheFingerprint) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const int64_t size : {1, 7, 8, 1000, 32768, 100003}) {
      torch::manual_seed(5);
      const auto make = [&] { return torch::randn({size}).to(dtype); };
      SumsInput input{make(), make(), make()};
      input.fingerprint = sum_and_square(input.gradient);
      const auto kept = parameter_sums({input}, false);
      EXPECT_TRUE(kept.changed.empty()) << dtype << " " << size;
      EXPECT_TRUE(torch::allclose(kept.sums[0], brute_force(input), 1e-11, 1e-11));
      const auto gradient = input.gradient.clone();
      for (const auto& other : {-gradient, gradient * 0.999, torch::zeros_like(gradient)}) {
        input.gradient.copy_(other);
        const auto left_out = parameter_sums({input}, false);
        EXPECT_EQ(left_out.changed, std::vector<size_t>{0}) << dtype << " " << size;
        EXPECT_TRUE(std::isnan(left_out.sums[0][kGradientUpdate].item<double>()));
        EXPECT_TRUE(std::isfinite(left_out.sums[0][kWeightUpdate].item<double>()));
      }
      input.gradient = at::Tensor();
      EXPECT_EQ(parameter_sums({input}, false).changed, std::vector<size_t>{0});
    }
  }
}

TEST(ParameterSums, AFingerprintOfNanIsRecognised) {
  SumsInput input{torch::ones({100}), torch::full({100}, std::nan("")), torch::ones({100})};
  input.fingerprint = sum_and_square(input.gradient);
  EXPECT_TRUE(parameter_sums({input}, false).changed.empty());
}

TEST(ParameterSums, DoesNotDependOnTheNumberOfThreads) {
  torch::manual_seed(3);
  const SumsInput input{torch::randn({300000}), torch::randn({300000}), torch::randn({300000})};
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = parameter_sums({input}, false).sums;
  at::set_num_threads(2);
  const auto two = parameter_sums({input}, false).sums;
  at::set_num_threads(threads);
  EXPECT_TRUE(torch::equal(one, two));
}

}  // namespace
}  // namespace tycho
