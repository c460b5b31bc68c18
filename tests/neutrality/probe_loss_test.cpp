// Whatever a probe loss does, training goes on as if there were no Tycho.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"
#include "tycho/probe.h"

namespace tycho {
namespace {

struct NetworkImpl : torch::nn::Module {
  NetworkImpl() {
    register_module("hidden", hidden);
    register_module("norm", norm);
    register_module("dropout", dropout);
    register_module("head", head);
    register_parameter("frozen", frozen, /*requires_grad=*/false);
  }
  at::Tensor forward(const at::Tensor& x) {
    return head(dropout(torch::tanh(norm(hidden(x + frozen)))));
  }
  torch::nn::Linear hidden{3, 5};
  torch::nn::BatchNorm1d norm{5};
  torch::nn::Dropout dropout{0.3};
  torch::nn::Linear head{5, 2};
  at::Tensor frozen = torch::ones({3}) * 0.1;
};
TORCH_MODULE(Network);

/// What a loss may reach.
struct Trainer {
  Network model;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  std::unique_ptr<Session> session;
  std::vector<Session::Pause> pauses;
  at::Tensor x, y;
  int evaluations = 0;
  at::Tensor loss() { return torch::mse_loss(model->forward(x), y); }
};

using Mischief = std::function<void(Trainer&)>;

std::vector<at::Tensor> train(const std::optional<SessionOptions>& options,
                              const Mischief& mischief) {
  torch::manual_seed(3);
  Trainer trainer;
  trainer.optimizer = std::make_unique<torch::optim::SGD>(
      trainer.model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  const auto data = torch::randn({6, 3});
  const auto target = torch::randn({6, 2});
  trainer.x = data.clone();
  trainer.y = target.clone();
  if (options) {
    trainer.session = std::make_unique<Session>(*trainer.model, *trainer.optimizer, *options);
    trainer.session->set_probe_loss([&] {
      ++trainer.evaluations;
      const auto value = trainer.loss();
      mischief(trainer);
      return value;
    });
  }
  for (int step = 0; step < 3; ++step) {
    trainer.optimizer->zero_grad();
    const auto loss = torch::mse_loss(trainer.model->forward(data), target);
    loss.backward();
    trainer.optimizer->step();
    if (trainer.session) trainer.session->step(loss, 6);
  }
  std::vector<at::Tensor> left;
  for (const auto& parameter : trainer.model->parameters()) {
    left.push_back(parameter.detach().clone());
    left.push_back(parameter.grad().defined() ? parameter.grad().clone() : torch::zeros({}));
    left.push_back(torch::tensor(static_cast<int64_t>(parameter.requires_grad())));
  }
  for (const auto& buffer : trainer.model->buffers()) left.push_back(buffer.clone());
  left.push_back(at::globalContext().defaultGenerator(torch::kCPU).get_state());
  for (const auto& module : trainer.model->modules()) {
    left.push_back(torch::tensor(static_cast<int64_t>(module->is_training())));
  }
  EXPECT_EQ(trainer.evaluations > 0, options.has_value());
  trainer.pauses.clear();
  return left;
}

class NeutralProbeLoss : public SessionDirectory {
 protected:
  void expect_neutral(const Mischief& mischief) {
    const auto bare = train(std::nullopt, {});
    const auto observed = train(full(), mischief);
    ASSERT_EQ(bare.size(), observed.size());
    for (size_t i = 0; i < bare.size(); ++i) EXPECT_TRUE(torch::equal(bare[i], observed[i])) << i;
  }
  RunContents run() const { return RunContents(directory_); }
};

TEST_F(NeutralProbeLoss, ClosesTheSession) {
  expect_neutral([](Trainer& t) { t.session->close(); });
  EXPECT_EQ(run().events.count("session_closed"), 1U);
}

TEST_F(NeutralProbeLoss, DestroysTheSession) {
  expect_neutral([](Trainer& t) { t.session.reset(); });
  EXPECT_EQ(run().events.count("session_closed"), 1U);
}

TEST_F(NeutralProbeLoss, StepsTheSession) {
  expect_neutral([](Trainer& t) { t.session->step(1.0, 6); });
  EXPECT_EQ(run().events.count("called_while_evaluating"), 1U);
  EXPECT_EQ(run().health.steps_seen(), 3U);
}

TEST_F(NeutralProbeLoss, PausesTheSessionForEver) {
  expect_neutral([](Trainer& t) {
    if (t.pauses.empty()) t.pauses.push_back(t.session->pause());
  });
}

TEST_F(NeutralProbeLoss, PausesTheSessionForAWhile) {
  expect_neutral([](Trainer& t) { const auto quiet = t.session->pause(); });
  EXPECT_EQ(run().health.steps_seen(), 3U);
}

struct NothingProbe : Probe {
  std::string name() const override { return "nothing"; }
  std::vector<v1::StatisticDefinition> statistics() const override { return {}; }
  Needs needs() const override { return {}; }
  Finish observe(const StepView&, Transfer&) override { return nullptr; }
};

TEST_F(NeutralProbeLoss, ChangesWhatTheSessionMeasures) {
  expect_neutral([](Trainer& t) {
    t.session->set_probe_loss([] { return torch::zeros({}); });
    t.session->set_step_loss([] { return torch::zeros({}); });
    t.session->set_batch_loss([](int64_t) { return torch::zeros({}); });
    t.session->set_loss_scale(2);
    t.session->add_probe(std::make_unique<NothingProbe>());
  });
  EXPECT_EQ(run().events.count("called_while_evaluating"), 1U);
  EXPECT_TRUE(run().has("sharpness"));
}

TEST_F(NeutralProbeLoss, ReplacesWeightsByOthers) {
  expect_neutral([](Trainer& t) {
    t.model->head->weight.set_data(torch::zeros({2, 5}));
    t.model->norm->running_mean.set_data(torch::ones({5}));
  });
}

TEST_F(NeutralProbeLoss, ReplacesWeightsByOthersOfAnotherShapeAndType) {
  expect_neutral([](Trainer& t) {
    t.model->head->weight.set_data(torch::zeros({7, 5}));
    t.model->hidden->bias.set_data(torch::zeros({5}, torch::kFloat64));
  });
}

TEST_F(NeutralProbeLoss, WritesPastTheVersionCounter) {
  expect_neutral([](Trainer& t) {
    const torch::NoGradGuard no_grad;
    t.model->hidden->weight.data().mul_(2);
    t.model->frozen.data().fill_(3);
    t.model->head->bias.data_ptr<float>()[0] = 17;
    t.model->norm->running_var.data_ptr<float>()[1] = 5;
  });
}

TEST_F(NeutralProbeLoss, FreezesAndUnfreezes) {
  expect_neutral([](Trainer& t) {
    t.model->hidden->weight.set_requires_grad(false);
    t.model->frozen.set_requires_grad(true);
    t.model->eval();
    t.model->norm->train();
  });
}

TEST_F(NeutralProbeLoss, RunsABackwardPassAndClearsGradients) {
  expect_neutral([](Trainer& t) {
    t.optimizer->zero_grad();
    t.loss().backward();
    t.model->head->weight.mutable_grad().mul_(5);
    torch::manual_seed(9);
    t.model->norm->running_mean.resize_({50});
  });
}

TEST_F(NeutralProbeLoss, ThrowsInTheMiddle) {
  int calls = 0;
  expect_neutral([&](Trainer& t) {
    t.model->hidden->weight.set_data(torch::zeros({5, 3}));
    torch::rand({3});
    if (++calls > 20) throw 17;
  });
  EXPECT_EQ(run().events.count("probe_loss_failed"), 1U);
}

TEST_F(NeutralProbeLoss, LeavesGradientModeOff) {
  expect_neutral([](Trainer&) { torch::GradMode::set_enabled(false); });
  EXPECT_TRUE(torch::GradMode::is_enabled());
}

}  // namespace
}  // namespace tycho
