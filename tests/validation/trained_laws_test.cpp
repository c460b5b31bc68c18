// The laws on networks that were trained with LibTorch and a session: from the module to the
// verdict.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/trace/run_reader.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "findings.h"

namespace tycho::analyzer {
namespace {

namespace nn = torch::nn;
using torch::Tensor;

class TrainedLawsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ = (std::filesystem::temp_directory_path() /
                  ("tycho_trained_" + std::string(info->name()) + "_" + std::to_string(getpid())))
                     .string();
    std::filesystem::remove_all(directory_);
    torch::manual_seed(5);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  SessionOptions every_step(Preset preset = Preset::standard) const {
    return SessionOptions(directory_).preset(preset).overhead_budget(std::nullopt);
  }

  std::vector<Finding> train(
      nn::Module& model, torch::optim::Optimizer& optimizer, const SessionOptions& options,
      int64_t batch_size, int steps, const std::function<Tensor()>& loss,
      const std::function<void()>& before_step = [] {}) {
    {
      Session session(model, optimizer, options);
      for (int step = 0; step < steps; ++step) {
        optimizer.zero_grad();
        const Tensor value = loss();
        value.backward();
        before_step();
        optimizer.step();
        session.step(value, batch_size);
      }
    }
    return analyze();
  }

  std::vector<Finding> analyze() {
    auto reader = trace::RunReader::open(directory_);
    EXPECT_TRUE(reader.ok()) << reader.status().message();
    Engine engine;
    EXPECT_TRUE(reader.value()->read(engine).ok());
    engine.finish();
    EXPECT_EQ(engine.ignored().unknown_statistic + engine.ignored().malformed, 0u);
    registry_ = engine.context().registry();
    for (const v1::StatisticDefinition& statistic : registry_.statistic())
      recorded_.insert(statistic.name());
    return engine.findings();
  }

  std::string directory_;
  v1::StatisticRegistry registry_;
  std::set<std::string> recorded_;  // names in it
};

TEST_F(TrainedLawsTest, WhatLawsReadIsWhatProbesRecord) {
  std::ifstream file(TYCHO_DOCS "/statistics.md");
  const std::string page{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  nn::Linear model(2, 2);
  torch::optim::SGD sgd(model->parameters(), 0.1);
  torch::optim::AdamW adamw(model->parameters(), torch::optim::AdamWOptions(0.1));
  // Each has statistics that are not defined under the other.
  for (torch::optim::Optimizer* optimizer : std::vector<torch::optim::Optimizer*>{&sgd, &adamw}) {
    std::filesystem::remove_all(directory_);
    (void)train(*model, *optimizer, every_step(Preset::full), 4, 1, [&] {
      return model->forward(torch::randn({4, 2})).square().mean();
    });
    // And the page on statistics says what the registry says.
    for (const v1::StatisticDefinition& statistic : registry_.statistic()) {
      EXPECT_THAT(page, ::testing::HasSubstr("`" + statistic.name() + "` = " + statistic.symbol()));
      EXPECT_THAT(page, ::testing::HasSubstr(statistic.definition()));
    }
  }
  EXPECT_EQ(recorded_.count("adam_update_rms") + recorded_.count("batch_sharpness"), 2u);
  for (const auto& law : make_laws()) {
    for (const std::string& statistic : law->description().statistics) {
      EXPECT_TRUE(recorded_.count(statistic) > 0) << law->description().id << ": " << statistic;
    }
  }
}

nn::Sequential deep_network(int64_t width, int layers) {
  nn::Sequential model;
  for (int i = 0; i < layers; ++i) {
    model->push_back(nn::Linear(width, width));
    model->push_back(nn::ReLU());
  }
  model->push_back(nn::Linear(width, 10));
  return model;
}

TEST_F(TrainedLawsTest, SignalsPropagateAsTheWeightsSay) {
  nn::Sequential model = deep_network(256, 9);
  torch::optim::SGD optimizer(model->parameters(), 1e-3);
  const Tensor x = torch::randn({128, 256});
  const Tensor y = torch::randint(10, {128});
  const auto findings = train(*model, optimizer, every_step(), 128, 1,
                              [&] { return nn::functional::cross_entropy(model->forward(x), y); });
  const Finding run = find(findings, "signal_propagation", "run");
  EXPECT_EQ(verdict(run), "HOLDS") << run.gate;
  // LibTorch's default weights have chi = 1/6: gradients fall by sqrt(6) a layer.
  EXPECT_NEAR(run.measured, 0.5 * std::log(6.0), 0.1);
  EXPECT_FALSE(run.advice.empty());
}

TEST_F(TrainedLawsTest, ABranchThatAddsToTheGradientIsOffTheLine) {
  nn::Sequential model = deep_network(256, 9);
  torch::optim::SGD optimizer(model->parameters(), 1e-3);
  const Tensor x = torch::randn({128, 256});
  const Tensor y = torch::randint(10, {128});
  (void)train(*model, optimizer, every_step(), 128, 1, [&] {
    // Someone scales a layer's gradient, which the weights do not show.
    Tensor h = x;
    int index = 0;
    for (auto& module : *model) {
      h = module.any_forward(h).get<Tensor>();
      if (++index == 9) h.register_hook([](const Tensor& gradient) { return gradient * 30; });
    }
    return nn::functional::cross_entropy(h, y);
  });
  const auto findings = analyze();
  int violated = 0;
  for (const Finding& finding : findings) {
    violated += finding.law == "signal_propagation" && finding.verdict == Verdict::kViolated;
  }
  EXPECT_GE(violated, 1);
}

TEST_F(TrainedLawsTest, ResidualNetworksAreNotJudgedByTheLineOfAChain) {
  std::vector<nn::Linear> layers;
  nn::Sequential model;
  for (int i = 0; i < 8; ++i) {
    layers.emplace_back(64, 64);
    model->push_back(layers.back());
  }
  torch::optim::SGD optimizer(model->parameters(), 1e-3);
  const Tensor x = torch::randn({32, 64});
  const auto findings = train(*model, optimizer, every_step(), 32, 1, [&] {
    Tensor h = x;
    for (nn::Linear& layer : layers) h = h + torch::relu(layer(h));
    return h.square().mean();
  });
  EXPECT_EQ(verdict(find(findings, "signal_propagation", "run")), "NOT_APPLICABLE");
}

// A weight that BatchNorm makes scale-invariant, decayed; the head is not, so that its gradient
// stays.
struct NormedImpl : nn::Module {
  nn::Linear first{nn::LinearOptions(12, 24).bias(false)};
  nn::BatchNorm1d norm{nn::BatchNorm1dOptions(24).eps(1e-8)};
  nn::Linear last{24, 4};
  NormedImpl() {
    register_module("first", first);
    register_module("norm", norm);
    register_module("last", last);
  }
  Tensor forward(const Tensor& x) { return last(torch::relu(norm(first(x)))); }
};
TORCH_MODULE(Normed);

std::vector<torch::optim::OptimizerParamGroup> decay_first_only(Normed& model, double learning_rate,
                                                                double momentum, double decay) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(
      model->first->parameters(),
      std::make_unique<torch::optim::SGDOptions>(
          torch::optim::SGDOptions(learning_rate).momentum(momentum).weight_decay(decay)));
  std::vector<Tensor> others = model->norm->parameters();
  for (const Tensor& parameter : model->last->parameters()) others.push_back(parameter);
  // A head that does not learn: the gradients of the first layer are noise for ever.
  groups.emplace_back(others,
                      std::make_unique<torch::optim::SGDOptions>(torch::optim::SGDOptions(0.0)));
  return groups;
}

TEST_F(TrainedLawsTest, ScaleInvariantWeightsReachRotationalEquilibrium) {
  Normed model;
  torch::optim::SGD optimizer(decay_first_only(model, 0.05, 0.9, 0.02),
                              torch::optim::SGDOptions(0.05));
  const auto findings =
      train(*model, optimizer, every_step(Preset::economy).every("scalars", 1), 16, 6000, [&] {
        return nn::functional::cross_entropy(model->forward(torch::randn({16, 12})),
                                             torch::randint(4, {16}));
      });
  const Finding rotation = find(findings, "rotational_equilibrium", "param:first.weight");
  EXPECT_NEAR(rotation.predicted, std::sqrt(2 * 0.05 * 0.02 / 1.9), 1e-6);
  EXPECT_EQ(verdict(rotation), "HOLDS") << rotation.measured << " " << rotation.gate;
}

// Labels of pure noise and decay everywhere: the head vanishes, with it all gradients, and the
// weights shrink for ever. That is no equilibrium and no violation.
TEST_F(TrainedLawsTest, WeightsThatOnlyDecayAreNotInEquilibrium) {
  Normed model;
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(0.05).momentum(0.9).weight_decay(0.02));
  const auto findings = train(*model, optimizer, every_step(Preset::economy), 16, 3000, [&] {
    return nn::functional::cross_entropy(model->forward(torch::randn({16, 12})),
                                         torch::randint(4, {16}));
  });
  EXPECT_EQ(verdict(find(findings, "rotational_equilibrium", "param:first.weight")), "NOT_YET");
}

TEST_F(TrainedLawsTest, TheBalanceOfSgdHoldsAndClippingLeavesNothingToTest) {
  for (const bool clip : {false, true}) {
    SCOPED_TRACE(clip);
    nn::Sequential model(nn::Linear(20, 30), nn::ReLU(), nn::Linear(30, 30), nn::ReLU(),
                         nn::Linear(30, 5));
    torch::optim::SGD optimizer(model->parameters(),
                                torch::optim::SGDOptions(0.2).weight_decay(1e-3));
    std::filesystem::remove_all(directory_);
    const auto findings = train(
        *model, optimizer, every_step(), 32, 60,
        [&] {
          return nn::functional::cross_entropy(model->forward(torch::randn({32, 20})),
                                               torch::randint(5, {32}));
        },
        [&] {
          if (clip) nn::utils::clip_grad_norm_(model->parameters(), 0.01);
        });
    EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "HOLDS");
    for (const char* scope : {"param:0.weight", "param:2.weight"}) {
      const Finding balance = find(findings, "conservation", scope);
      EXPECT_EQ(verdict(balance), clip ? "NOT_APPLICABLE" : "HOLDS") << balance.gate;
      if (clip) EXPECT_NE(balance.gate.find("clipped"), std::string::npos) << balance.gate;
    }
  }
}

// Where the loss is nearly zero its gradient is rounding, which no longer sums to zero over
// classes.
TEST_F(TrainedLawsTest, ANetworkThatKnowsItsDataByHeartBreaksNoSymmetry) {
  nn::Sequential model(nn::Linear(8, 64), nn::ReLU(), nn::Linear(64, 5));
  torch::optim::Adam optimizer(model->parameters(), 2e-2);
  const Tensor x = torch::randn({24, 8});
  const Tensor y = torch::randint(5, {24});
  double last = 1;
  const auto findings =
      train(*model, optimizer, every_step(Preset::economy).every("symmetry", 1), 24, 3000, [&] {
        const Tensor loss = nn::functional::cross_entropy(model->forward(x), y);
        last = loss.item<double>();
        return loss;
      });
  EXPECT_LT(last, 1e-4);
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "HOLDS");
  for (const Finding& finding : findings) {
    if (finding.law == "symmetry") {
      EXPECT_NE(verdict(finding), "VIOLATED") << finding.scope << " " << finding.measured;
    }
  }
}

TEST_F(TrainedLawsTest, NoBalanceIsPredictedForAdamAndNoneOfBrokenSymmetries) {
  nn::Sequential model(nn::Linear(20, 30), nn::Tanh(), nn::Linear(30, 5));
  torch::optim::Adam optimizer(model->parameters(), 1e-2);
  const auto findings = train(*model, optimizer, every_step(), 32, 40, [&] {
    return model->forward(torch::randn({32, 20})).square().mean();
  });
  EXPECT_EQ(verdict(find(findings, "conservation", "run")), "NOT_APPLICABLE");
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "NOT_APPLICABLE");
}

TEST_F(TrainedLawsTest, GradientNoiseOfLinearRegressionIsTheClosedForm) {
  constexpr int64_t kDimension = 10;
  constexpr int64_t kBatch = 16;
  constexpr double kNoise = 0.5;
  nn::Linear model(nn::LinearOptions(kDimension, 1).bias(false));
  model->to(torch::kDouble);
  const Tensor truth = torch::randn({1, kDimension}, torch::kDouble);
  const double distance_sq = (model->weight - truth).square().sum().item<double>();
  torch::optim::SGD optimizer(model->parameters(), 0.0);  // the weights stay
  const auto findings = train(*model, optimizer, every_step(), kBatch, 4000, [&] {
    const Tensor x = torch::randn({kBatch, kDimension}, torch::kDouble);
    const Tensor y =
        torch::matmul(x, truth.t()) + kNoise * torch::randn({kBatch, 1}, torch::kDouble);
    return 0.5 * (model->forward(x) - y).square().mean();
  });
  const Finding run = find(findings, "gradient_noise_scale", "run");
  const double expected = (kDimension + 1) + kDimension * kNoise * kNoise / distance_sq;
  EXPECT_LE(run.ci_low, expected);
  EXPECT_GE(run.ci_high, expected);
  EXPECT_NEAR(run.measured, expected, 0.1 * expected);
}

TEST_F(TrainedLawsTest, SgdAtItsNoiseFloorFluctuatesAsItDissipates) {
  nn::Linear model(nn::LinearOptions(8, 1).bias(false));
  model->to(torch::kDouble);
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(0.1).momentum(0.5).weight_decay(0.1));
  const Tensor truth = torch::randn({1, 8}, torch::kDouble);
  const auto findings = train(*model, optimizer, every_step(Preset::economy), 8, 30000, [&] {
    const Tensor x = torch::randn({8, 8}, torch::kDouble);
    const Tensor y = torch::matmul(x, truth.t()) + torch::randn({8, 1}, torch::kDouble);
    return 0.5 * (model->forward(x) - y).square().mean();
  });
  const Finding run = find(findings, "fluctuation_dissipation", "run");
  EXPECT_EQ(verdict(run), "HOLDS")
      << run.measured << " [" << run.ci_low << ", " << run.ci_high << "] " << run.gate;
}

TEST_F(TrainedLawsTest, AdamsUpdateOnPureNoise) {
  nn::Linear model(20, 10);
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-4));
  const auto findings = train(*model, optimizer, every_step(), 16, 1500, [&] {
    return nn::functional::cross_entropy(model->forward(torch::randn({16, 20})),
                                         torch::randint(10, {16}));
  });
  const Finding weight = find(findings, "adam_update_rms", "param:weight");
  EXPECT_NE(verdict(weight), "VIOLATED") << weight.gate;
  EXPECT_NE(verdict(weight), "NOT_APPLICABLE") << weight.gate;
}

}  // namespace
}  // namespace tycho::analyzer
