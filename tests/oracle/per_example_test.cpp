// Per-example gradient norms against the plain method: one backward pass for each example alone.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "plugin/src/observer.h"
#include "tests/support/test_device.h"

namespace tycho {
namespace {

using torch::Tensor;
namespace nn = torch::nn;

ModelInfo describe(nn::Module& module) {
  ModelInfo info;
  std::map<const void*, uint32_t> seen;
  auto add = [&](const std::string& path, nn::Module& owner) {
    LayerInfo layer;
    layer.id = static_cast<uint32_t>(info.layers.size());
    layer.path = path;
    layer.type = owner.name();
    for (auto& item : owner.named_parameters(false)) {
      if (!seen.emplace(item.value().unsafeGetTensorImpl(), 0).second) continue;
      ParameterInfo parameter;
      parameter.id = static_cast<uint32_t>(info.parameters.size());
      parameter.name = (path.empty() ? "" : path + ".") + item.key();
      parameter.layer = layer.id;
      parameter.tensor = item.value();
      layer.parameters.push_back(parameter.id);
      info.parameters.push_back(parameter);
    }
    if (!layer.parameters.empty()) info.layers.push_back(layer);
  };
  add("", module);
  for (auto& item : module.named_modules("", false)) add(item.key(), *item.value());
  return info;
}

Needs everything() {
  Needs needs;
  needs.gradients = needs.microbatch_gradient_norms = needs.per_example_gradient_norms = true;
  needs.activations = needs.output_gradients = true;
  return needs;
}

using Forward = std::function<Tensor(const Tensor& input)>;

// Loss: the mean over examples of a fixed random weighting of the example's outputs, squared.
Tensor example_loss(const Tensor& output, int64_t batch_dim) {
  Tensor by = batch_dim == 0 ? output : output.transpose(0, batch_dim);
  Tensor flat = by.reshape({by.size(0), -1});
  Tensor weights = torch::arange(flat.size(1), flat.options()).mul(0.37).sin().add(1.1);
  return (flat * weights).square().sum(1).add((flat * weights).sum(1)).mul(0.5);
}

struct Case {
  std::string name;
  std::shared_ptr<nn::Module> module;
  Forward forward;
  Tensor input;
  int64_t batch_dim = 0;
};

// The reference: one backward pass per example.
std::vector<std::vector<double>> reference(const ModelInfo& info, const Case& c) {
  const int64_t batch = c.input.size(c.batch_dim);
  std::vector<std::vector<double>> norms(info.parameters.size());
  std::vector<Tensor> parameters;
  for (const auto& parameter : info.parameters) parameters.push_back(parameter.tensor);
  const Tensor losses = example_loss(c.forward(c.input), c.batch_dim) / batch;
  for (int64_t i = 0; i < batch; ++i) {
    const auto gradients = torch::autograd::grad({losses[i]}, parameters, {}, true, false, true);
    for (size_t p = 0; p < parameters.size(); ++p) {
      norms[p].push_back(gradients[p].defined()
                             ? gradients[p].to(torch::kDouble).square().sum().item<double>()
                             : 0.0);
    }
  }
  return norms;
}

StepObservation observe(Observer* observer, const Case& c, double scale = 1) {
  const int64_t batch = c.input.size(c.batch_dim);
  observer->install(everything(), scale, batch);
  (example_loss(c.forward(c.input), c.batch_dim).mean() * scale).backward();
  return observer->uninstall(batch);
}

void expect_matches(Case c, double tolerance = 1e-10) {
  SCOPED_TRACE(c.name);
  c.module->to(test_device());
  c.input = c.input.to(test_device());
  const ModelInfo info = describe(*c.module);
  const auto expected = reference(info, c);
  ObserverOptions options;
  options.batch_dim = c.batch_dim;
  Observer observer(info, options);
  // The first pass makes the examples' gradients and checks their sum; the second takes the short
  // way.
  for (int pass = 0; pass < 3; ++pass) {
    c.module->zero_grad();
    const StepObservation got = observe(&observer, c, pass == 2 ? 128.0 : 1.0);
    for (const auto& parameter : info.parameters) {
      SCOPED_TRACE(parameter.name + ", pass " + std::to_string(pass));
      const ParameterObservation& seen = got.parameters[parameter.id];
      ASSERT_EQ(seen.why_not_per_example, "");
      ASSERT_EQ(seen.per_example_norm_sq.size(), 1u);
      const Tensor norms = seen.per_example_norm_sq[0].cpu();
      ASSERT_EQ(seen.per_example_norm_sq[0].device().type(), test_device().type());
      ASSERT_EQ(norms.scalar_type(), torch::kDouble);
      ASSERT_EQ(norms.size(0), static_cast<int64_t>(expected[parameter.id].size()));
      double largest = 0;
      for (double value : expected[parameter.id]) largest = std::max(largest, value);
      EXPECT_GT(largest, 0.0);
      for (int64_t i = 0; i < norms.size(0); ++i) {
        EXPECT_NEAR(norms[i].item<double>(), expected[parameter.id][static_cast<size_t>(i)],
                    tolerance * largest);
      }
      EXPECT_TRUE(torch::allclose(
          seen.gradient.to(torch::kDouble),
          parameter.tensor.grad().to(torch::kDouble) / (pass == 2 ? 128.0 : 1.0), 1e-6, 1e-12));
    }
  }
}

Tensor random(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

template <typename Holder>
Case simple(const std::string& name, Holder module, Tensor input) {
  module->to(torch::kDouble);
  auto impl = module.ptr();
  return {name, impl, [impl](const Tensor& x) { return impl->forward(x); }, input};
}

class PerExample : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(1); }
};

TEST_F(PerExample, Linear) {
  expect_matches(simple("rows", nn::Linear(5, 4), random({6, 5})));
  expect_matches(simple("one example", nn::Linear(5, 4), random({1, 5})));
  expect_matches(simple("sequence", nn::Linear(5, 4), random({6, 3, 5})));
  expect_matches(simple("short sequence of wide features", nn::Linear(40, 30), random({6, 2, 40})));
  expect_matches(simple("two extra dimensions", nn::Linear(5, 4), random({6, 3, 2, 5})));
  expect_matches(
      simple("without bias", nn::Linear(nn::LinearOptions(5, 4).bias(false)), random({6, 3, 5})));
  expect_matches(simple("not contiguous", nn::Linear(5, 4), random({5, 6}).t()));
}

TEST_F(PerExample, DeepNetworkWithInPlaceActivations) {
  nn::Sequential net(nn::Linear(5, 16), nn::ReLU(nn::ReLUOptions(true)), nn::Linear(16, 16),
                     nn::Tanh(), nn::Linear(16, 3));
  expect_matches(simple("mlp", net, random({7, 5})));
}

TEST_F(PerExample, Convolution) {
  expect_matches(simple("1d", nn::Conv1d(nn::Conv1dOptions(4, 6, 3).stride(2).padding(1)),
                        random({5, 4, 11})));
  expect_matches(
      simple("2d", nn::Conv2d(nn::Conv2dOptions(3, 4, 3).padding(1)), random({5, 3, 6, 7})));
  expect_matches(simple("2d, few positions", nn::Conv2d(nn::Conv2dOptions(12, 20, 3).stride(2)),
                        random({5, 12, 5, 5})));
  expect_matches(simple("2d, groups, stride, dilation",
                        nn::Conv2d(nn::Conv2dOptions(4, 6, {3, 2})
                                       .stride({2, 1})
                                       .dilation({1, 2})
                                       .groups(2)
                                       .padding({1, 2})),
                        random({5, 4, 8, 7})));
  expect_matches(
      simple("depthwise", nn::Conv2d(nn::Conv2dOptions(4, 4, 3).groups(4)), random({5, 4, 6, 6})));
  expect_matches(simple(
      "circular", nn::Conv2d(nn::Conv2dOptions(2, 3, 3).padding(1).padding_mode(torch::kCircular)),
      random({4, 2, 6, 6})));
  expect_matches(
      simple("3d", nn::Conv3d(nn::Conv3dOptions(2, 3, 2).stride(2)), random({3, 2, 4, 5, 4})));
  expect_matches(simple("without bias", nn::Conv2d(nn::Conv2dOptions(3, 4, 3).bias(false)),
                        random({5, 3, 6, 7})));
}

TEST_F(PerExample, TransposedConvolution) {
  expect_matches(simple("1d", nn::ConvTranspose1d(nn::ConvTranspose1dOptions(4, 3, 3).stride(2)),
                        random({5, 4, 6})));
  expect_matches(simple(
      "2d",
      nn::ConvTranspose2d(
          nn::ConvTranspose2dOptions(4, 6, 3).stride(2).padding(1).output_padding(1).groups(2)),
      random({5, 4, 4, 5})));
  expect_matches(simple("3d", nn::ConvTranspose3d(nn::ConvTranspose3dOptions(2, 3, 2)),
                        random({3, 2, 3, 2, 3})));
}

TEST_F(PerExample, Embedding) {
  const Tensor words = torch::randint(0, 7, {6, 5}, torch::kLong);
  expect_matches(simple("words", nn::Embedding(7, 4), words));
  expect_matches(
      simple("padding", nn::Embedding(nn::EmbeddingOptions(7, 4).padding_idx(2)), words));
}

TEST_F(PerExample, Normalization) {
  expect_matches(simple("layer", nn::LayerNorm(nn::LayerNormOptions({5})), random({6, 3, 5})));
  expect_matches(simple("layer over two dimensions", nn::LayerNorm(nn::LayerNormOptions({3, 5})),
                        random({6, 3, 5})));
  expect_matches(simple("group", nn::GroupNorm(2, 4), random({6, 4, 3, 2})));
  expect_matches(simple("instance", nn::InstanceNorm2d(nn::InstanceNorm2dOptions(4).affine(true)),
                        random({6, 4, 3, 2})));
}

// BatchNorm couples the examples, so the reference takes each example's term of the gradient's sum.
TEST_F(PerExample, BatchNormTerms) {
  for (const bool training : {true, false}) {
    nn::BatchNorm2d norm(3);
    norm->to(torch::kDouble);
    torch::NoGradGuard no_grad;
    norm->weight.uniform_(0.5, 2);
    norm->running_mean.uniform_(-1, 1);
    norm->train(training);
    const Tensor x = random({6, 3, 4, 2});
    const ModelInfo info = describe(*norm);
    Observer observer(info, {});
    for (int pass = 0; pass < 2; ++pass) {
      const Tensor mean = training ? x.mean({0, 2, 3}) : norm->running_mean.clone();
      const Tensor variance = training ? x.var({0, 2, 3}, false) : norm->running_var.clone();
      const Tensor standard = (x - mean.view({1, 3, 1, 1})) /
                              (variance + norm->options.eps()).sqrt().view({1, 3, 1, 1});
      Tensor d;
      StepObservation got;
      {
        torch::AutoGradMode enable(true);
        norm->zero_grad();
        observer.install(everything(), 1, 6);
        Tensor y = norm->forward(x);
        y.register_hook([&](const Tensor& gradient) { d = gradient.clone(); });
        example_loss(y, 0).mean().backward();
        got = observer.uninstall(6);
      }
      const Tensor gain = (d * standard).sum({2, 3}).square().sum(1);
      ASSERT_EQ(got.parameters[0].why_not_per_example, "");
      EXPECT_TRUE(torch::allclose(got.parameters[0].per_example_norm_sq.at(0), gain, 1e-10, 1e-14));
      EXPECT_TRUE(torch::allclose(got.parameters[1].per_example_norm_sq.at(0),
                                  d.sum({2, 3}).square().sum(1), 1e-10, 1e-14));
    }
  }
}

struct ScaleAndShift : nn::Module {
  Tensor scale, shift, position;
  nn::Linear linear{nullptr};
  ScaleAndShift() {
    scale = register_parameter("scale", torch::rand({4}, torch::kDouble));
    shift = register_parameter("shift", torch::rand({1}, torch::kDouble));
    position = register_parameter("position", torch::rand({3, 4}, torch::kDouble));
    linear = register_module("linear", nn::Linear(4, 4));
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) { return linear->forward((x + position) * scale + shift); }
};

TEST_F(PerExample, ParametersUsedDirectly) {
  auto module = std::make_shared<ScaleAndShift>();
  expect_matches({"scale", module, [module](const Tensor& x) { return module->forward(x); },
                  random({5, 3, 4})});
}

TEST_F(PerExample, WeightSharingSumsBeforeSquaring) {
  auto module = std::make_shared<nn::LinearImpl>(4, 4);
  module->to(torch::kDouble);
  expect_matches(
      {"twice", module,
       [module](const Tensor& x) { return module->forward(torch::tanh(module->forward(x))); },
       random({6, 4})});
  struct Tied : nn::Module {
    nn::Embedding embedding{nullptr};
    Tied() {
      embedding = register_module("embedding", nn::Embedding(7, 4));
      to(torch::kDouble);
    }
    Tensor forward(const Tensor& x) {
      return torch::matmul(torch::tanh(embedding->forward(x)), embedding->weight.t());
    }
  };
  auto tied = std::make_shared<Tied>();
  expect_matches({"embedding and head", tied, [tied](const Tensor& x) { return tied->forward(x); },
                  torch::randint(0, 7, {5, 3}, torch::kLong)});
}

TEST_F(PerExample, AttentionAndTransformerWithTheBatchSecond) {
  auto attention =
      std::make_shared<nn::MultiheadAttentionImpl>(nn::MultiheadAttentionOptions(8, 2));
  attention->to(torch::kDouble);
  expect_matches({"self", attention,
                  [attention](const Tensor& x) { return std::get<0>(attention->forward(x, x, x)); },
                  random({5, 3, 8}), 1});
  expect_matches({"cross", attention,
                  [attention](const Tensor& x) {
                    return std::get<0>(attention->forward(x, x.flip(0) * 0.7, x * 1.3));
                  },
                  random({5, 3, 8}), 1});
  auto layer = std::make_shared<nn::TransformerEncoderLayerImpl>(
      nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(12).dropout(0));
  layer->to(torch::kDouble);
  expect_matches({"encoder layer", layer, [layer](const Tensor& x) { return layer->forward(x); },
                  random({5, 3, 8}), 1});
}

TEST_F(PerExample, FlattenedRows) {
  auto linear = std::make_shared<nn::LinearImpl>(4, 3);
  linear->to(torch::kDouble);
  expect_matches({"flattened", linear,
                  [linear](const Tensor& x) {
                    return linear->forward(x.reshape({-1, 4})).reshape({x.size(0), x.size(1), 3});
                  },
                  random({6, 5, 4})});
}

TEST_F(PerExample, WhatIsNotKnownIsNotObserved) {
  struct Masked : nn::Module {
    Tensor weight = register_parameter("weight", torch::rand({4, 4}, torch::kDouble));
    Tensor mask = torch::ones({4, 4}, torch::kDouble);
    Tensor forward(const Tensor& x) { return torch::matmul(x, weight * mask); }
  };
  auto masked = std::make_shared<Masked>();
  const ModelInfo info = describe(*masked);
  Observer observer(info, {});
  const Case c{"masked", masked, [masked](const Tensor& x) { return masked->forward(x); },
               random({4, 4})};
  const auto got = observe(&observer, c);
  EXPECT_TRUE(got.parameters[0].per_example_norm_sq.empty());
  EXPECT_NE(got.parameters[0].why_not_per_example, "");
  EXPECT_TRUE(got.parameters[0].gradient.defined());

  nn::LSTM lstm(nn::LSTMOptions(4, 3).num_layers(2).dropout(0.5));
  lstm->to(torch::kDouble);
  auto impl = lstm.ptr();
  const ModelInfo recurrent = describe(*lstm);
  Observer watcher(recurrent, {});
  const Case r{"lstm", impl, [impl](const Tensor& x) { return std::get<0>(impl->forward(x)); },
               random({5, 3, 4}), 1};
  for (const auto& parameter : observe(&watcher, r).parameters) {
    EXPECT_TRUE(parameter.per_example_norm_sq.empty());
    EXPECT_NE(parameter.why_not_per_example, "");
  }
}

TEST_F(PerExample, LowPrecision) {
  for (const auto type : {torch::kFloat, torch::kBFloat16}) {
    nn::Sequential net(nn::Linear(8, 16), nn::ReLU(), nn::Linear(16, 3));
    net->to(type);
    auto impl = net.ptr();
    Case c{"low", impl, [impl](const Tensor& x) { return impl->forward(x).to(torch::kFloat); },
           torch::randn({6, 8}).to(type)};
    expect_matches(c, type == torch::kFloat ? 1e-5 : 5e-2);
  }
}

TEST_F(PerExample, Microbatches) {
  nn::Sequential net(nn::Linear(5, 6), nn::Tanh(), nn::Linear(6, 2));
  net->to(torch::kDouble);
  auto impl = net.ptr();
  const ModelInfo info = describe(*net);
  Observer observer(info, {});
  const Tensor x = random({9, 5});
  for (int pass = 0; pass < 3; ++pass) {
    net->zero_grad();
    observer.install(everything(), 1, 9);
    for (const auto& part : x.split(3))
      (example_loss(impl->forward(part), 0).mean() / 3).backward();
    const auto got = observer.uninstall(9);
    const auto expected = reference(
        info, {"whole", impl, [&](const Tensor& input) { return impl->forward(input); }, x});
    for (const auto& parameter : info.parameters) {
      const auto& seen = got.parameters[parameter.id];
      ASSERT_EQ(seen.per_example_norm_sq.size(), 3u) << seen.why_not_per_example;
      const Tensor norms = torch::cat(seen.per_example_norm_sq);
      for (int64_t i = 0; i < 9; ++i) {
        EXPECT_NEAR(norms[i].item<double>(), expected[parameter.id][static_cast<size_t>(i)], 1e-12);
      }
      EXPECT_TRUE(torch::allclose(seen.gradient, parameter.tensor.grad(), 1e-12, 1e-14));
      if (pass > 0) {
        ASSERT_EQ(seen.microbatch_gradient_norm_sq.size(), 3u);
      }
    }
  }
}

TEST_F(PerExample, GradientsThrownAwayAreNotCounted) {
  nn::Linear net(5, 2);
  net->to(torch::kDouble);
  const ModelInfo info = describe(*net);
  Observer observer(info, {});
  for (int pass = 0; pass < 3; ++pass) {
    observer.install(everything(), 1, 4);
    example_loss(net->forward(random({4, 5})), 0).mean().backward();  // another network's loss
    net->zero_grad();
    const Tensor x = random({4, 5});
    example_loss(net->forward(x), 0).mean().backward();
    const auto got = observer.uninstall(4);
    EXPECT_TRUE(torch::allclose(got.parameters[0].gradient, net->weight.grad()));
    EXPECT_EQ(got.parameters[0].per_example_norm_sq.size(), 1u);
    net->zero_grad();
  }
}

TEST_F(PerExample, LaterEvaluationsOfAClosureAreLeftOut) {
  nn::Linear net(5, 2);
  net->to(torch::kDouble);
  const ModelInfo info = describe(*net);
  ObserverOptions options;
  options.optimizer_evaluates = true;
  Observer observer(info, options);
  torch::optim::LBFGS optimizer(net->parameters(), torch::optim::LBFGSOptions(0.5).max_iter(4));
  const Tensor x = random({4, 5});
  for (int pass = 0; pass < 3; ++pass) {
    const Tensor expected =
        torch::autograd::grad({example_loss(net->forward(x), 0).mean()}, {net->weight})[0];
    observer.install(everything(), 1, 4);
    int evaluations = 0;
    optimizer.step([&] {
      ++evaluations;
      optimizer.zero_grad();
      Tensor loss = example_loss(net->forward(x), 0).mean();
      loss.backward();
      return loss;
    });
    const auto got = observer.uninstall(4);
    if (pass == 0) {
      EXPECT_GT(evaluations, 1);
    }
    ASSERT_TRUE(got.parameters[0].gradient.defined());
    EXPECT_TRUE(torch::allclose(got.parameters[0].gradient, expected, 1e-12, 1e-14));
    EXPECT_EQ(got.parameters[0].per_example_norm_sq.size(), 1u)
        << got.parameters[0].why_not_per_example;
  }
}

TEST_F(PerExample, ClippedGradientsAreKeptAsDelivered) {
  nn::Linear net(5, 2);
  net->to(torch::kDouble);
  const ModelInfo info = describe(*net);
  Observer observer(info, {});
  for (int pass = 0; pass < 5; ++pass) {
    net->zero_grad();
    const Tensor x = random({4, 5});
    const Tensor expected =
        torch::autograd::grad({example_loss(net->forward(x), 0).mean()}, {net->weight})[0];
    observer.install(everything(), 1, 4);
    example_loss(net->forward(x), 0).mean().backward();
    if (pass != 3) nn::utils::clip_grad_norm_(net->parameters(), 1e-3);
    const auto got = observer.uninstall(4);
    ASSERT_TRUE(got.parameters[0].gradient.defined());
    EXPECT_TRUE(torch::allclose(got.parameters[0].gradient, expected, 1e-12, 1e-14));
  }
}

}  // namespace
}  // namespace tycho
