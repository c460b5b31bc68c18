// Feature learning as a session records it.
#include <gtest/gtest.h>
#include <torch/script.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

namespace nn = torch::nn;
namespace F = torch::nn::functional;

using FeaturesSession = SessionDirectory;

double rms(const at::Tensor& x) { return x.square().mean().sqrt().item<double>(); }

TEST_F(FeaturesSession, RecordsWhatLayersLearn) {
  torch::manual_seed(1);
  nn::Linear below(4, 6), above(6, 3);
  nn::Sequential model(below, nn::ReLU(nn::ReLUOptions().inplace(true)), nn::Dropout(0.3), above);
  model->to(torch::kFloat64);
  const auto x = torch::randn({12, 4}, torch::kFloat64);
  const auto y = torch::randint(3, {12});
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.05));
  std::vector<at::Tensor> z;
  {
    Session session(*model, optimizer, full());
    ProbeLoss loss;
    loss.output = [&](int64_t) {
      model->eval();
      return model->forward(x);
    };
    loss.loss = [&](const at::Tensor& output, int64_t) { return F::cross_entropy(output, y); };
    loss.labels = [&](int64_t) { return y; };
    session.set_probe_loss(std::move(loss));
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      const auto value = F::cross_entropy(model->forward(x), y);
      value.backward();
      optimizer.step();
      session.step(value, 12);
      EXPECT_TRUE(model->is_training());
      z.push_back(below(x).detach().clone());
    }
  }
  const RunContents run(directory_);
  for (int64_t step = 1; step < 5; ++step) {
    EXPECT_NEAR(run.at("feature_change@0", step), rms(z[static_cast<size_t>(step)] - z[0]), 1e-12);
    EXPECT_NEAR(run.at("feature_step_change@0", step),
                rms(z[static_cast<size_t>(step)] - z[static_cast<size_t>(step) - 1]), 1e-12);
    EXPECT_EQ(run.at("propagated_change@0", step), 0);
  }
  for (const char* name :
       {"feature_rms@0", "feature_change_relative@3", "effective_update@3", "propagated_change@3",
        "output_rms", "output_change", "feature_similarity@0", "feature_similarity_step@3",
        "kernel_distance", "kernel_distance@0", "kernel_velocity", "kernel_trace@3",
        "kernel_target_alignment", "linearization_residual", "feature_ansatz_alignment@3",
        "class_variability", "self_duality", "nearest_center_mismatch", "probe_error"}) {
    EXPECT_TRUE(run.has(name)) << name;
  }
  EXPECT_FALSE(run.has("fact_residual@0"));  // no weight decay
  EXPECT_EQ(run.events.at("features_reference").step(), 0);
  for (const auto& [code, event] : run.events) {
    EXPECT_NE(event.kind(), v1::Event::FAULT) << code << ": " << event.message();
  }
}

TEST_F(FeaturesSession, SaysWhatIsMissing) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(4, 3));
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer,
                    SessionOptions(directory_).every("feature_change", 1).tape(false));
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      const auto value = model->forward(torch::randn({5, 4})).square().mean();
      value.backward();
      optimizer.step();
      session.step(value, 5);
    }
  }
  const RunContents run(directory_);
  EXPECT_EQ(run.events.count("loss_missing_features"), 1u);
  EXPECT_FALSE(run.has("feature_rms@0"));
}

TEST_F(FeaturesSession, OfATorchScriptModel) {
  torch::manual_seed(1);
  torch::jit::Module model("Net");
  model.register_parameter("weight", torch::randn({3, 5}).requires_grad_(), false);
  model.register_parameter("bias", torch::zeros({3}).requires_grad_(), false);
  model.define(R"(
    def forward(self, x):
        return torch.relu(torch.linear(x, self.weight, self.bias))
  )");
  std::vector<at::Tensor> parameters;
  for (const auto& parameter : model.parameters()) parameters.push_back(parameter);
  torch::optim::SGD optimizer(parameters, 0.1);
  const auto x = torch::randn({6, 5});
  std::vector<at::Tensor> z;
  {
    Session session(model, optimizer, full().every("features", 1));
    ProbeLoss loss;
    loss.output = [&](int64_t) { return model.forward({x}).toTensor(); };
    loss.loss = [](const at::Tensor& output, int64_t) { return output.square().mean(); };
    session.set_probe_loss(std::move(loss));
    for (int step = 0; step < 4; ++step) {
      optimizer.zero_grad();
      const auto value = model.forward({x}).toTensor().square().mean();
      value.backward();
      optimizer.step();
      session.step(value, 6);
      z.push_back(torch::linear(x, parameters[0], parameters[1]).detach().clone());
    }
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("feature_change@", 3), rms(z[3] - z[0]), 1e-6);
  EXPECT_TRUE(run.has("kernel_distance"));
}

}  // namespace
}  // namespace tycho
