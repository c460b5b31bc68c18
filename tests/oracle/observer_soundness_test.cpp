// Cases in which a plausible but wrong number would be easy to produce: each must be exact or not
// observed.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "plugin/src/observer.h"
#include "single_examples.h"

namespace tycho {
namespace {

using torch::Tensor;
namespace nn = torch::nn;

Needs gradients_only() {
  Needs needs;
  needs.gradients = true;
  return needs;
}

Needs norms() {
  Needs needs = gradients_only();
  needs.per_example_gradient_norms = true;
  return needs;
}

Tensor random(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

// Per example: a smooth function of its outputs that is no sum of squares.
Tensor losses(const Tensor& output) {
  return output.reshape({output.size(0), -1}).sin().cumsum(1).square().sum(1);
}

uint32_t id_of(const ModelInfo& info, const std::string& name) {
  for (const ParameterInfo& parameter : info.parameters) {
    if (parameter.name == name) return parameter.id;
  }
  ADD_FAILURE() << "no parameter " << name;
  return 0;
}

// Three observed steps (the first one also checks sums). Each parameter is exact or, if its name is
// in `unobserved`, absent with a reason.
void expect_sound(nn::Module& module, const std::function<Tensor()>& forward, int64_t batch,
                  const std::vector<std::string>& unobserved) {
  const ModelInfo info = describe(module);
  const std::vector<Tensor> parameters = parameters_of(info);
  const Tensor each = losses(forward()) / batch;
  ASSERT_EQ(each.size(0), batch);
  const auto expected = gradients_by_example(each, parameters, batch);
  Observer observer(info, {});
  for (int pass = 0; pass < 3; ++pass) {
    module.zero_grad();
    observer.install(norms(), 1, batch);
    losses(forward()).mean().backward();
    const StepObservation got = observer.uninstall(batch);
    for (const auto& parameter : info.parameters) {
      SCOPED_TRACE(parameter.name + ", pass " + std::to_string(pass));
      const ParameterObservation& seen = got.parameters[parameter.id];
      const bool absent =
          std::find(unobserved.begin(), unobserved.end(), parameter.name) != unobserved.end();
      if (absent) {
        EXPECT_TRUE(seen.per_example_norm_sq.empty());
        EXPECT_NE(seen.why_not_per_example, "");
        continue;
      }
      ASSERT_EQ(seen.per_example_norm_sq.size(), 1u) << seen.why_not_per_example;
      for (int64_t i = 0; i < batch; ++i) {
        const Tensor& gradient = expected[static_cast<size_t>(i)][parameter.id];
        const double norm_sq = gradient.defined() ? gradient.square().sum().item<double>() : 0;
        EXPECT_NEAR(seen.per_example_norm_sq[0][i].item<double>(), norm_sq,
                    1e-10 * (norm_sq + 1e-6));
      }
    }
  }
}

class ObserverSoundness : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(2); }
};

// A table of positions is read with indices that say nothing of the examples, as many as there are
// examples or a multiple of them: its gradient is that of where the positions are added.
struct Positions : nn::Module {
  nn::Embedding words{nullptr}, positions{nullptr};
  nn::Linear head{nullptr};
  explicit Positions(int64_t length) {
    positions = register_module("positions", nn::Embedding(length, 4));
    words = register_module("words", nn::Embedding(9, 4));
    head = register_module("head", nn::Linear(4, 3));
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) {
    const Tensor place = positions->forward(torch::arange(x.size(1), torch::kLong));
    return head->forward(torch::tanh(words->forward(x) + place));
  }
};

TEST_F(ObserverSoundness, PositionsAreNotExamples) {
  for (const int64_t length : {4, 8, 5}) {
    Positions model(length);
    const Tensor x = torch::randint(0, 9, {4, length}, torch::kLong);
    expect_sound(model, [&] { return model.forward(x); }, 4, {});
  }
}

// Attention written by hand moves dimensions about and back; every parameter stays exact.
struct Attention : nn::Module {
  nn::Embedding words{nullptr}, positions{nullptr};
  nn::Linear mix{nullptr}, out{nullptr};
  Attention() {
    words = register_module("words", nn::Embedding(9, 4));
    positions = register_module("positions", nn::Embedding(5, 4));
    mix = register_module("mix", nn::Linear(4, 12));
    out = register_module("out", nn::Linear(4, 3));
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) {
    const Tensor place = torch::arange(x.size(1)).expand_as(x);
    const Tensor h = words->forward(x) + positions->forward(place);
    const Tensor heads =
        mix->forward(h).view({x.size(0), x.size(1), 3, 2, 2}).permute({2, 0, 3, 1, 4});
    const Tensor scores = torch::softmax(torch::matmul(heads[0], heads[1].transpose(-2, -1)), -1);
    return out->forward(torch::matmul(scores, heads[2]).transpose(1, 2).flatten(2));
  }
};

TEST_F(ObserverSoundness, AttentionWrittenByHand) {
  Attention model;
  const Tensor x = torch::randint(0, 9, {4, 5}, torch::kLong);
  expect_sound(model, [&] { return model.forward(x); }, 4, {});
}

// With as many positions as examples, a transposed activation looks as one that is not: where the
// examples went is followed.
struct Mixer : nn::Module {
  nn::Linear in{nullptr}, across{nullptr}, out{nullptr};
  bool flatten;
  explicit Mixer(bool flatten_) : flatten(flatten_) {
    in = register_module("in", nn::Linear(3, 5));
    across = register_module("across", nn::Linear(5, 5));
    out = register_module("out", nn::Linear(5, 2));
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) {
    Tensor h = torch::tanh(in->forward(x)).transpose(0, 1);
    if (flatten) h = h.reshape({-1, 5});
    h = torch::tanh(across->forward(h)).reshape({x.size(1), x.size(0), 5});
    return out->forward(h.transpose(0, 1));
  }
};

TEST_F(ObserverSoundness, TransposedActivations) {
  for (const bool flatten : {false, true}) {
    Mixer square(flatten);
    const Tensor x = random({4, 4, 3});
    expect_sound(square, [&] { return square.forward(x); }, 4, {});
    Mixer oblong(flatten);
    const Tensor y = random({4, 6, 3});
    expect_sound(oblong, [&] { return oblong.forward(y); }, 4, {});
  }
}

TEST_F(ObserverSoundness, DetachedAndTransformedWeights) {
  struct Detached : nn::Module {
    nn::Linear linear{nullptr};
    Tensor gain = register_parameter("gain", torch::rand({}, torch::kDouble));
    Tensor weight = register_parameter("weight", torch::rand({4, 4}, torch::kDouble));
    Detached() {
      linear = register_module("linear", nn::Linear(4, 4));
      to(torch::kDouble);
    }
    Tensor forward(const Tensor& x) {
      const Tensor h = torch::tanh(linear->forward(x));
      // Its use as a constant gives it no gradient.
      return torch::matmul(h, linear->weight.detach()) + torch::matmul(h, gain * weight);
    }
  };
  Detached model;
  const Tensor x = random({4, 4});  // as many examples as rows of the weight
  expect_sound(model, [&] { return model.forward(x); }, 4, {"gain", "weight"});
}

TEST_F(ObserverSoundness, SeveralForwardsOfDifferentSizes) {
  nn::Sequential net(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  net->to(torch::kDouble);
  const ModelInfo info = describe(*net);
  Observer observer(info, {});
  for (int pass = 0; pass < 3; ++pass) {
    net->zero_grad();
    observer.install(norms(), 1, 4);
    const Tensor small = net->forward(random({4, 3}));
    const Tensor large = net->forward(random({8, 3}));
    (losses(small).mean() + losses(large).mean()).backward();
    const auto got = observer.uninstall(4);
    for (const auto& seen : got.parameters) {
      EXPECT_TRUE(seen.per_example_norm_sq.empty());
      EXPECT_NE(seen.why_not_per_example, "");
      EXPECT_TRUE(seen.gradient.defined());
    }
  }
}

// Some optimizers write through .data(), which no version counter shows. A backward through the
// network afterwards (a generator's, through the discriminator) is at other parameters.
TEST_F(ObserverSoundness, BackwardAfterTheOptimizerMovedTheParameters) {
  for (const Needs& needs : {gradients_only(), norms()}) {
    nn::Sequential net(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
    net->to(torch::kDouble);
    torch::optim::SGD optimizer(net->parameters(), 0.1);
    const ModelInfo info = describe(*net);
    Observer observer(info, {});
    for (int pass = 0; pass < 4; ++pass) {
      const Tensor x = random({4, 3});
      const Tensor weight = info.parameters[0].tensor;
      const Tensor expected = torch::autograd::grad({losses(net->forward(x)).mean()}, {weight})[0];
      optimizer.zero_grad();
      observer.install(needs, 1, 4);
      losses(net->forward(x)).mean().backward();
      optimizer.step();
      losses(net->forward(random({4, 3}))).mean().backward();
      const auto got = observer.uninstall(4);
      ASSERT_TRUE(got.parameters[0].gradient.defined()) << "pass " << pass;
      EXPECT_TRUE(torch::allclose(got.parameters[0].gradient, expected, 1e-12, 1e-14));
      if (needs.per_example_gradient_norms) {
        EXPECT_EQ(got.parameters[0].per_example_norm_sq.size(), 1u)
            << got.parameters[0].why_not_per_example;
      }
    }
  }
}

// Once steps have been seen to hold one backward pass, nothing watches for writes; the step in
// which a second one appears is not observed, later ones are.
TEST_F(ObserverSoundness, SecondBackwardOutOfTheBlue) {
  nn::Linear net(3, 2);
  net->to(torch::kDouble);
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  const ModelInfo info = describe(*net);
  Observer observer(info, {});
  for (int pass = 0; pass < 6; ++pass) {
    const Tensor x = random({4, 3});
    const Tensor expected =
        torch::autograd::grad({losses(net->forward(x)).mean()}, {net->weight})[0];
    optimizer.zero_grad();
    observer.install(gradients_only(), 1, 4);
    losses(net->forward(x)).mean().backward();
    optimizer.step();
    if (pass >= 3) losses(net->forward(random({4, 3}))).mean().backward();
    const auto got = observer.uninstall(4);
    EXPECT_EQ(got.parameters[0].gradient.defined(), pass != 3);
    if (pass != 3) {
      EXPECT_TRUE(torch::allclose(got.parameters[0].gradient, expected, 1e-12, 1e-14));
    }
  }
}

TEST_F(ObserverSoundness, FrozenAndUnusedParameters) {
  nn::Sequential net(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  net->to(torch::kDouble);
  net[0]->as<nn::Linear>()->weight.set_requires_grad(false);
  net[0]->as<nn::Linear>()->bias.set_requires_grad(false);
  const ModelInfo info = describe(*net);
  Observer observer(info, {});
  observer.install(norms(), 1, 4);
  losses(net->forward(random({4, 3}))).mean().backward();
  const auto got = observer.uninstall(4);
  EXPECT_FALSE(got.parameters[0].gradient.defined());
  EXPECT_TRUE(got.parameters[0].per_example_norm_sq.empty());
  EXPECT_EQ(got.parameters[id_of(info, "2.weight")].per_example_norm_sq.size(), 1u);
}

TEST_F(ObserverSoundness, NoiseMadeInTheStepIsAnInput) {
  nn::Sequential net(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  net->to(torch::kDouble);
  expect_sound(*net,
               [&] {
                 torch::manual_seed(5);
                 return net->forward(torch::randn({6, 3}, torch::kDouble));
               },
               6, {});
}

// Evaluation between forward and backward, with and without gradients.
TEST_F(ObserverSoundness, EvaluationDoesNotDisturb) {
  nn::Linear net(3, 2);
  net->to(torch::kDouble);
  const Tensor x = random({4, 3});
  expect_sound(*net,
               [&] {
                 torch::NoGradGuard no_grad;
                 (void)net->forward(random({7, 3}));
                 torch::AutoGradMode enable(true);
                 return net->forward(x);
               },
               4, {});
}

}  // namespace
}  // namespace tycho
