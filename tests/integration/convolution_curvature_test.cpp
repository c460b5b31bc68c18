// LibTorch 2.6 with oneDNN 3.7 reads memory that nobody wrote in the backward pass of convolutions.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <torch/version.h>
#include <tycho/tycho.h>

#include <cmath>
#include <vector>

#include "tests/oracle/curvature_networks.h"
#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

nn::Sequential two_convolutions(at::ScalarType type) {
  nn::Sequential net(nn::Conv2d(nn::Conv2dOptions(1, 3, 3).padding(1)), nn::Tanh(),
                     nn::Conv2d(3, 8, 3), nn::Tanh(), nn::Flatten(), nn::Linear(8 * 4 * 4, 3));
  net->to(type);
  return net;
}

using ConvolutionCurvature = SessionDirectory;

TEST_F(ConvolutionCurvature, InSinglePrecisionIsRightOrNotObserved) {
  torch::manual_seed(1);
  auto net = two_convolutions(torch::kFloat32);
  auto wide = two_convolutions(torch::kFloat64);
  const auto x = torch::randn({8, 1, 6, 6});
  const auto y = torch::randint(3, {8}, torch::kInt64);
  torch::optim::SGD optimizer(net->parameters(), 0.05);
  constexpr int kSteps = 3;
  std::vector<double> right;
  {
    Session session(*net, optimizer,
                    SessionOptions(directory_)
                        .overhead_budget(std::nullopt)
                        .every("sharpness", 1)
                        .every("directional_sharpness", 1));
    session.set_probe_loss([&] { return torch::cross_entropy_loss(net->forward(x), y); });
    for (int step = 0; step < kSteps; ++step) {
      optimizer.zero_grad();
      const auto loss = torch::cross_entropy_loss(net->forward(x), y);
      loss.backward();
      optimizer.step();
      {
        const torch::NoGradGuard no_grad;
        for (size_t i = 0; i < net->parameters().size(); ++i) {
          wide->parameters()[i].copy_(net->parameters()[i]);
        }
      }
      const auto hessian = dense_hessian(
          [&] { return torch::cross_entropy_loss(wide->forward(x.to(torch::kFloat64)), y); },
          wide->parameters());
      right.push_back(std::get<0>(torch::linalg_eigh(hessian)).max().item<double>());
      session.step(loss, 8);
    }
  }
  const RunContents run(directory_);
  const bool said = run.events.count("convolutions_are_wrong") > 0;
  EXPECT_NE(run.has("sharpness"), said);
  EXPECT_NE(run.has("directional_sharpness"), said);
  EXPECT_FALSE(said && TORCH_VERSION_MAJOR == 1);
  for (int step = 0; step < kSteps && !said; ++step) {
    EXPECT_NEAR(run.at("sharpness", step), right[static_cast<size_t>(step)],
                2e-3 * std::abs(right[static_cast<size_t>(step)]));
  }
}

}  // namespace
}  // namespace tycho
