// Several backward passes in a step: gradient noise follows from them only if each holds examples
// of its own.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/support/run_contents.h"
#include "tests/support/session_directory.h"

namespace tycho {
namespace {

namespace nn = torch::nn;
using at::Tensor;

/// Of a recurrent layer gradients of single examples are not known, of a Linear they are.
struct Reader : nn::Module {
  Reader() {
    // With dropout between its layers single examples' gradients are not known.
    gru = register_module(
        "gru", nn::GRU(nn::GRUOptions(3, 4).batch_first(true).num_layers(2).dropout(0.2)));
    head = register_module("head", nn::Linear(4, 2));
    to(torch::kFloat64);
  }
  Tensor forward(const Tensor& x) {
    return head->forward(std::get<0>(gru->forward(x)).select(1, -1));
  }
  nn::GRU gru{nullptr};
  nn::Linear head{nullptr};
};

Tensor first_loss(const Tensor& y) { return y.square().sum(1).mean(); }
Tensor second_loss(const Tensor& y) { return y.sin().sum(1).mean(); }

class MicrobatchesTest : public SessionDirectory {
 protected:
  void SetUp() override {
    SessionDirectory::SetUp();
    torch::manual_seed(5);
    x_ = torch::randn({4, 6, 3}, torch::kFloat64);
  }

  /// `backward` does the backward passes of a step and returns its loss.
  RunContents train(const std::function<Tensor()>& backward, int64_t batch = 4) {
    torch::optim::SGD optimizer(model_.parameters(), 0.01);
    {
      Session session(model_, optimizer, SessionOptions(directory_).overhead_budget(std::nullopt));
      for (int step = 0; step < 4; ++step) {
        optimizer.zero_grad();
        const Tensor loss = backward();
        optimizer.step();
        session.step(loss, batch);
      }
    }
    return RunContents(directory_);
  }
  static void expect_no_noise(const RunContents& run, const std::string& scope) {
    EXPECT_FALSE(run.has("grad_noise_trace" + scope)) << scope;
    EXPECT_FALSE(run.has("per_example_grad_norm_sq" + scope)) << scope;
    EXPECT_TRUE(run.events.count("gradient_noise_not_observed"));
  }

  Reader model_;
  Tensor x_;
};

TEST_F(MicrobatchesTest, LossesThatShareAForwardPassAreNone) {
  const RunContents run = train([&] {
    const Tensor y = model_.forward(x_);
    const Tensor one = first_loss(y);
    const Tensor two = second_loss(y);
    one.backward({}, true);
    two.backward();
    return one + two;
  });
  for (const char* scope : {"", "#gru.weight_hh_l0", "#head.weight"}) expect_no_noise(run, scope);
  EXPECT_TRUE(run.has("grad_norm_sq"));
}

TEST_F(MicrobatchesTest, LossesOfOneBatchAreNoneThoughEachHasAForwardPass) {
  const RunContents run = train([&] {
    const Tensor one = first_loss(model_.forward(x_));
    one.backward();
    const Tensor two = second_loss(model_.forward(x_));
    two.backward();
    return one + two;
  });
  for (const char* scope : {"", "#gru.weight_hh_l0", "#head.weight"}) expect_no_noise(run, scope);
}

TEST_F(MicrobatchesTest, ForwardPassesBeforeAllBackwardPassesAreNotTakenForThem) {
  const RunContents run = train([&] {
    const Tensor one = first_loss(model_.forward(x_.slice(0, 0, 2))) / 2;
    const Tensor two = first_loss(model_.forward(x_.slice(0, 2, 4))) / 2;
    one.backward();
    two.backward();
    return one + two;
  });
  expect_no_noise(run, "#gru.weight_hh_l0");
}

TEST_F(MicrobatchesTest, HalvesOfABatchGiveTheNoiseOfAnyLayer) {
  std::vector<double> expected;
  const RunContents run = train([&] {
    std::vector<double> squares;
    Tensor loss = torch::zeros({}, torch::kFloat64);
    double all = 0;
    for (int half = 0; half < 2; ++half) {
      const Tensor before = model_.gru->all_weights()[1].grad().defined()
                                ? model_.gru->all_weights()[1].grad().clone()
                                : torch::zeros_like(model_.gru->all_weights()[1]);
      const Tensor part = first_loss(model_.forward(x_.slice(0, 2 * half, 2 * half + 2))) / 2;
      part.backward();
      const Tensor now = model_.gru->all_weights()[1].grad();
      squares.push_back(4 * (now - before).square().sum().item<double>());
      all = now.square().sum().item<double>();
      loss = loss + part.detach();
    }
    expected.push_back(((squares[0] + squares[1]) / 2 - all) / (1.0 / 2 - 1.0 / 4));
    return loss;
  });
  // At the first step it is not known yet that there are several.
  for (int64_t step = 1; step < 4; ++step) {
    const double right = expected[static_cast<size_t>(step)];
    EXPECT_NEAR(run.at("grad_noise_trace#gru.weight_hh_l0", step), right, 1e-9 * std::abs(right));
  }
}

}  // namespace
}  // namespace tycho
