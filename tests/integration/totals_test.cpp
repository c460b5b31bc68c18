// Sums over a layer or the run hold every parameter, or are not recorded and it is said why.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <optional>
#include <string>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

double norm_sq(const at::Tensor& tensor) {
  at::Tensor x = tensor.detach();
  if (x.is_sparse()) x = x.to_dense();
  if (x.is_complex()) x = torch::view_as_real(x);
  return x.to(torch::kFloat64).square().sum().item<double>();
}

class TotalsTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(1);
  }
  SessionOptions options() const {
    return SessionOptions(directory_).preset(Preset::standard).overhead_budget(std::nullopt);
  }
};

double gradient_norm_sq(const torch::nn::Module& model) {
  double sum = 0;
  for (const at::Tensor& parameter : model.parameters()) {
    if (parameter.grad().defined()) sum += norm_sq(parameter.grad());
  }
  return sum;
}

TEST_F(TotalsTest, SparseGradientsCountAndTheirShareOfTheNoiseIsSaid) {
  struct Network : torch::nn::Module {
    Network() {
      e = register_module("e",
                          torch::nn::Embedding(torch::nn::EmbeddingOptions(9, 4).sparse(true)));
      l = register_module("l", torch::nn::Linear(4, 2));
      to(torch::kFloat64);
    }
    torch::nn::Embedding e{nullptr};
    torch::nn::Linear l{nullptr};
  } model;
  torch::optim::SGD optimizer(model.parameters(), 0.1);
  double total = 0;
  double linear = 0;
  double dot = 0;
  {
    Session session(model, optimizer, options());
    const auto x = torch::randint(0, 9, {4, 3});
    const auto loss = model.l(torch::tanh(model.e(x))).sin().square().mean();
    loss.backward();
    total = gradient_norm_sq(model);
    linear = gradient_norm_sq(*model.l);
    dot = (model.e->weight.grad().to_dense() * model.e->weight.detach()).sum().item<double>();
    optimizer.step();
    session.step(loss, 4);
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("grad_norm_sq", 0), total, 1e-12);
  EXPECT_NEAR(run.at("weight_dot_grad#e.weight", 0), dot, 1e-12);
  const double coverage = run.at("noise_coverage", 0);
  EXPECT_EQ(run.at("noise_coverage@l", 0), 1);
  if (run.has("grad_noise_trace#e.weight")) {
    EXPECT_EQ(coverage, 1);
    return;
  }
  EXPECT_NEAR(coverage, linear / total, 1e-12);
  EXPECT_LT(coverage, 1);
  EXPECT_FALSE(run.has("grad_noise_trace"));
  EXPECT_NEAR(run.at("covered_noise_trace", 0), run.at("grad_noise_trace@l", 0), 1e-12);
  EXPECT_NE(run.events.at("noise_total_not_observed").message().find("e.weight"),
            std::string::npos);
}

TEST_F(TotalsTest, AHookOfTheProgramChangesWhatIsRecorded) {
  torch::nn::Sequential model(torch::nn::Linear(3, 4), torch::nn::Tanh(), torch::nn::Linear(4, 2));
  model->to(torch::kFloat64);
  for (auto& parameter : model->parameters()) {
    parameter.register_hook([](at::Tensor gradient) { return gradient.clamp(-0.01, 0.01); });
  }
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  double microbatches = 0;
  {
    Session session(*model, optimizer, options());
    for (int part = 0; part < 2; ++part) {
      const auto loss =
          model->forward(torch::randn({4, 3}, torch::kFloat64)).sin().square().mean() / 2;
      loss.backward();
      if (part == 0) continue;
      microbatches = gradient_norm_sq(*model);
      optimizer.step();
      session.step(loss, 8);
    }
  }
  EXPECT_GT(microbatches, 0);
  EXPECT_NEAR(RunContents(directory_).at("grad_norm_sq", 0), microbatches, 1e-15);
}

TEST_F(TotalsTest, GradientsThatTheProgramPutsThereAreRecorded) {
  torch::nn::Linear model(3, 2);
  model->to(torch::kFloat64);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  double expected = 0;
  {
    Session session(*model, optimizer, options());
    const auto loss = model(torch::randn({4, 3}, torch::kFloat64)).square().mean();
    const auto gradients = torch::autograd::grad({loss}, model->parameters());
    for (size_t i = 0; i < gradients.size(); ++i) {
      model->parameters()[i].mutable_grad() = 2 * gradients[i];
    }
    expected = gradient_norm_sq(*model);
    optimizer.step();
    session.step(loss, 4);
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("grad_norm_sq", 0), expected, 1e-12);
  EXPECT_EQ(run.events.count("gradients_by_hand"), 1u);
  EXPECT_FALSE(run.has("grad_noise_trace"));
}

TEST_F(TotalsTest, AGradientThatBuildsAGraphIsRecordedAlsoInMicrobatches) {
  torch::nn::Linear model(3, 2);
  model->to(torch::kFloat64);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  double expected = 0;
  {
    Session session(*model, optimizer, options());
    for (int part = 0; part < 2; ++part) {
      const auto loss = model(torch::randn({4, 3}, torch::kFloat64)).square().mean();
      loss.backward({}, /*retain_graph=*/true, /*create_graph=*/true);
      if (part == 0) continue;
      expected = gradient_norm_sq(*model);
      session.step(loss, 8);
    }
    for (auto& parameter : model->parameters()) parameter.mutable_grad() = at::Tensor();
  }
  EXPECT_NEAR(RunContents(directory_).at("grad_norm_sq", 0), expected, 1e-12);
}

TEST_F(TotalsTest, ComplexParametersCountWithBothParts) {
  struct Network : torch::nn::Module {
    Network() {
      w = register_parameter("w", torch::randn({3}, torch::kComplexDouble));
      v = register_parameter("v", torch::randn({3}, torch::kFloat64));
    }
    at::Tensor w, v;
  } model;
  torch::optim::SGD optimizer(model.parameters(), 0.1);
  double weights = 0;
  double gradients = 0;
  double updates = 0;
  {
    Session session(model, optimizer, options());
    const auto loss = (model.w * model.v + 1).abs().square().sum();
    loss.backward();
    weights = norm_sq(model.w) + norm_sq(model.v);
    gradients = gradient_norm_sq(model);
    const auto before = model.w.detach().clone();
    const auto before_v = model.v.detach().clone();
    optimizer.step();
    updates = norm_sq(model.w - before) + norm_sq(model.v - before_v);
    session.step(loss, 1);
  }
  const RunContents run(directory_);
  EXPECT_NEAR(run.at("weight_norm_sq", 0), weights, 1e-12);
  EXPECT_NEAR(run.at("grad_norm_sq", 0), gradients, 1e-12);
  EXPECT_NEAR(run.at("update_norm_sq", 0), updates, 1e-12);
}

TEST_F(TotalsTest, ASumOfWhichATermIsUnknownIsNotRecorded) {
  torch::nn::Sequential model(torch::nn::Linear(3, 4), torch::nn::Tanh(), torch::nn::Linear(4, 2));
  model->to(torch::kFloat64);
  torch::optim::SGD optimizer(model->parameters(), 0.01);
  constexpr int kTouched = 6;  // gradients are not copied any more by then
  {
    Session session(*model, optimizer, options().preset(Preset::economy).every("grad_norm_sq", 1));
    for (int step = 0; step <= kTouched; ++step) {
      const auto loss = model->forward(torch::randn({4, 3}, torch::kFloat64)).sin().square().mean();
      optimizer.zero_grad();
      loss.backward();
      if (step == kTouched) model->parameters()[0].mutable_grad().mul_(0.5);
      optimizer.step();
      session.step(loss, 4);
    }
  }
  const RunContents run(directory_);
  ASSERT_EQ(run.events.count("gradient_changed_before_step"), 1u);
  EXPECT_EQ(run.values.at("grad_norm_sq").count(kTouched), 0u);
  EXPECT_EQ(run.values.at("grad_norm_sq@0").count(kTouched), 0u);
  EXPECT_EQ(run.values.at("grad_norm_sq@2").count(kTouched), 1u);
  EXPECT_EQ(run.values.at("weight_norm_sq").count(kTouched), 1u);
  EXPECT_NE(run.events.at("scalars_total_not_observed").message().find("0.weight"),
            std::string::npos);
}

TEST_F(TotalsTest, NamesThatAreNoTextAreWrittenOut) {
  torch::nn::Sequential model;
  model->push_back(std::string("\xff\xfe bad"), torch::nn::Linear(3, 2));
  model->push_back("gr\xc3\xbcn", torch::nn::Linear(2, 2));
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  {
    Session session(*model, optimizer, options().run_name("a\xc0\xaf"));
    const auto loss = model->forward(torch::randn({4, 3})).square().mean();
    loss.backward();
    optimizer.step();
    session.step(loss, 4);
  }
  const RunContents run(directory_);
  EXPECT_TRUE(run.has("weight_norm_sq#\\xff\\xfe bad.weight"));
  EXPECT_TRUE(run.has("weight_norm_sq#gr\xc3\xbcn.weight"));
  EXPECT_EQ(run.run.run_name(), "a\\xc0\\xaf");
}

}  // namespace
}  // namespace tycho
