// What layers take in and give out on the probe batch, against the layers called one by one.
#include <ATen/record_function.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/probed_model.h"

namespace tycho {
namespace {

namespace nn = torch::nn;
namespace F = torch::nn::functional;

const auto kWide = torch::dtype(torch::kFloat64);

double distance(const at::Tensor& left, const at::Tensor& right) {
  EXPECT_EQ(left.sizes(), right.sizes());
  if (left.sizes() != right.sizes()) return 1e9;
  return (left - right).abs().max().item<double>();
}

/// Each use's operator, with its own input, weight and bias, gives its own output, and is linear.
void expect_own_operators(ProbedModel& probed, FeaturePass& pass) {
  torch::manual_seed(99);
  for (const LayerUse& use : pass.uses()) {
    const auto w = probed.weight(use).detach();
    const auto b = probed.bias(use).defined() ? probed.bias(use).detach() : at::Tensor();
    EXPECT_LT(distance(use.op->apply(use.input, w, b), use.output), 1e-12);
    const auto v = torch::randn_like(w);
    const auto c = b.defined() ? torch::randn_like(b) : at::Tensor();
    const auto sum = use.op->apply(use.input, w + v, b.defined() ? b + c : b);
    EXPECT_LT(distance(sum - use.output, use.op->apply(use.input, v, c)), 1e-11);
  }
}

struct ManyLayersImpl : nn::Module {
  nn::Conv2d convolution{nn::Conv2dOptions(2, 4, 3).stride(2).padding(1)};
  nn::BatchNorm2d norm{4};
  nn::Conv2d grouped{nn::Conv2dOptions(4, 6, 2).groups(2).bias(false)};
  nn::ConvTranspose2d transposed{nn::ConvTranspose2dOptions(6, 3, 2).stride(2)};
  nn::Linear hidden{48, 7};
  nn::LayerNorm layer_norm{nn::LayerNormOptions({7})};
  nn::Linear head{7, 3};
  at::Tensor gain, functional;
  ManyLayersImpl() {
    register_module("convolution", convolution);
    register_module("norm", norm);
    register_module("grouped", grouped);
    register_module("transposed", transposed);
    register_module("hidden", hidden);
    register_module("layer_norm", layer_norm);
    register_module("head", head);
    gain = register_parameter("gain", torch::ones({3}) * 2);
    functional = register_parameter("functional", torch::randn({3, 3}));
  }
  std::vector<at::Tensor> seen;  // inputs and outputs of each layer, in order
  at::Tensor forward(at::Tensor x) {
    seen.clear();
    const auto note = [&](const at::Tensor& in, const at::Tensor& out) {
      seen.push_back(in.detach().clone());
      seen.push_back(out.detach().clone());
      return out;
    };
    x = note(x, convolution(x));
    x = note(x, norm(x));
    torch::relu_(x);
    x = note(x, grouped(x));
    x = note(x, transposed(x)).flatten(1);
    x = note(x, hidden(x));
    torch::tanh_(x);
    x = note(x, layer_norm(x));
    x = note(x, head(x));
    x = note(x, x * gain);
    return note(x, torch::matmul(x, functional));
  }
};
TORCH_MODULE(ManyLayers);

TEST(FeaturePass, SeesWhatEachLayerTookInAndGaveOutThoughItIsOverwritten) {
  torch::manual_seed(1);
  ManyLayers model;
  model->to(torch::kFloat64);
  const auto x = torch::randn({5, 2, 5, 5}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [](const at::Tensor& z) { return z.square().mean(); }));
  for (const bool gradients : {false, true}) {
    const auto before = probed.everything();
    {
      const auto made = probed.pass(gradients);
      FeaturePass& pass = made->pass;
      const auto& uses = pass.uses();
      ASSERT_EQ(uses.size(), 9u);
      const std::vector<std::string> paths = {
          "convolution", "norm", "grouped", "transposed", "hidden", "layer_norm", "head", "", ""};
      for (size_t i = 0; i < uses.size(); ++i) {
        EXPECT_EQ(uses[i].layer, probed.layer(paths[i])) << i;
        EXPECT_EQ(distance(uses[i].input, model->seen[2 * i]), 0) << i;
        EXPECT_EQ(distance(uses[i].output, model->seen[2 * i + 1]), 0) << i;
        EXPECT_FALSE(uses[i].output.requires_grad());
      }
      EXPECT_EQ(probed.facts.info.parameters[uses[0].bias].name, "convolution.bias");
      EXPECT_EQ(uses[2].bias, LayerUse::kNone);
      EXPECT_EQ(probed.facts.info.parameters[uses[8].weight].name, "functional");
      EXPECT_EQ(pass.examples(0), 5);
      EXPECT_EQ(distance(pass.outputs()[0], model->seen.back()), 0);
      expect_own_operators(probed, pass);
      EXPECT_TRUE(made->pass.take_notices().empty());
    }
    const auto after = probed.everything();
    for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
  }
}

TEST(FeaturePass, TokensSequencesAndAWeightUsedTwice) {
  struct TiedImpl : nn::Module {
    nn::Embedding token{11, 6};
    nn::Linear mix{6, 6};
    TiedImpl() {
      register_module("token", token);
      register_module("mix", mix);
    }
    at::Tensor forward(const at::Tensor& tokens) {
      const auto x = token(tokens);
      const auto y = mix(torch::tanh(mix(x)));
      return torch::matmul(y, token->weight.t());
    }
  };
  torch::manual_seed(1);
  auto model = std::make_shared<TiedImpl>();
  model->to(torch::kFloat64);
  const auto tokens = torch::randint(11, {4, 3});
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(tokens); },
                                           [](const at::Tensor& z) { return z.square().mean(); }));
  const auto made = probed.pass();
  FeaturePass& pass = made->pass;
  const auto token = probed.uses_of(pass, "token");
  ASSERT_EQ(token.size(), 2u);
  EXPECT_EQ(token[0].op->kind(), LayerOperator::Kind::kEmbedding);
  EXPECT_EQ(token[1].op->kind(), LayerOperator::Kind::kLinear);
  EXPECT_EQ(distance(token[0].output, model->token(tokens).detach()), 0);
  EXPECT_EQ(distance(token[1].output, pass.outputs()[0]), 0);
  // The head's weight as a matrix [out, in] is the embedding's, though a transposed view is used.
  EXPECT_EQ(distance(token[1].op->matrix(model->token->weight), model->token->weight.detach()), 0);
  const auto mix = probed.uses_of(pass, "mix");
  ASSERT_EQ(mix.size(), 2u);
  // The bias is added by an operator of its own, in place.
  EXPECT_EQ(distance(mix[0].output, model->mix(model->token(tokens)).detach()), 0);
  EXPECT_NE(mix[0].bias, LayerUse::kNone);
  EXPECT_EQ(mix[1].op->rows(mix[1].output).sizes(), (std::vector<int64_t>{12, 6}));
  expect_own_operators(probed, pass);
}

TEST(FeaturePass, AttentionModulesWithOneWeightForThreeProjections) {
  torch::manual_seed(1);
  nn::MultiheadAttention attention(nn::MultiheadAttentionOptions(6, 2));
  attention->to(torch::kFloat64);
  const auto query = torch::randn({5, 3, 6}, kWide);
  const auto other = torch::randn({4, 3, 6}, kWide);
  for (const bool self : {true, false}) {
    const auto key = self ? query : other;
    ProbedModel probed(
        *attention,
        probe_loss_of([&] { return std::get<0>(attention->forward(query, key, key)); },
                      [](const at::Tensor& z) { return z.square().mean(); }),
        1);
    const auto made = probed.pass();
    EXPECT_EQ(probed.uses_of(made->pass, "").size(), self ? 1u : 2u);
    EXPECT_EQ(probed.uses_of(made->pass, "out_proj").size(), 1u);
    EXPECT_EQ(made->pass.examples(0), 3);
    expect_own_operators(probed, made->pass);
  }
}

TEST(FeaturePass, GradientsAreThoseOfAutogradWhateverIsDoneToOutputsAfterwards) {
  torch::manual_seed(1);
  ManyLayers model;
  model->to(torch::kFloat64);
  const auto x = torch::randn({5, 2, 5, 5}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [](const at::Tensor& z) { return z.pow(4).mean(); }));
  const auto made = probed.pass(true);
  const auto seed = torch::randn({5, 3}, kWide);
  for (const bool of_loss : {true, false}) {
    const auto d = made->pass.gradients(0, of_loss ? at::Tensor() : seed);
    const auto& uses = made->pass.uses();
    ASSERT_EQ(d.size(), uses.size());
    for (size_t i = 0; i < uses.size(); ++i) {
      // By the weights' gradients: of the use's output contracted with d.
      const auto w = probed.weight(uses[i]);
      const auto z = made->pass.outputs()[0];
      const auto root = [&](const at::Tensor& y) {
        return of_loss ? y.pow(4).mean() : (seed * y).sum();
      };
      torch::manual_seed(4);
      const auto expected = torch::autograd::grad({root(model->forward(x))}, {w})[0];
      const auto v = torch::randn_like(w);
      const double got = (uses[i].op->apply(uses[i].input, v, {}) * d[i]).sum().item<double>();
      EXPECT_NEAR(got, (expected * v).sum().item<double>(), 1e-10 * (1 + std::abs(got))) << i;
    }
  }
}

TEST(FeaturePass, ChunksAreEvaluatedOneByOneAndAgainForTheirGradients) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(3, 4), nn::Tanh(), nn::Linear(4, 2));
  model->to(torch::kFloat64);
  const auto x = torch::randn({9, 3}, kWide);
  ProbeLoss loss;
  loss.weights = {5 / 9.0, 4 / 9.0};
  const auto part = [&](int64_t chunk) { return chunk == 0 ? x.slice(0, 0, 5) : x.slice(0, 5, 9); };
  loss.output = [&](int64_t chunk) { return model->forward(part(chunk)); };
  loss.loss = [&](const at::Tensor& z, int64_t) { return z.square().sum(1).mean(); };
  ProbedModel probed(*model, loss);
  const auto made = probed.pass(true);
  FeaturePass& pass = made->pass;
  ASSERT_EQ(pass.uses().size(), 4u);
  EXPECT_EQ(pass.examples(0), 5);
  EXPECT_EQ(pass.examples(1), 4);
  const auto z = model->forward(x).detach();
  at::Tensor weight_gradient = torch::zeros({2, 4}, kWide);
  for (const int64_t chunk : {1, 0, 1, 0}) {
    const auto d = pass.gradients(chunk, {});
    for (size_t i = 0; i < d.size(); ++i) {
      EXPECT_EQ(d[i].defined(), pass.uses()[i].chunk == chunk);
    }
    const LayerUse& head = pass.uses()[static_cast<size_t>(2 * chunk + 1)];
    weight_gradient += torch::matmul(d[static_cast<size_t>(2 * chunk + 1)].t(), head.input) / 2;
  }
  const auto expected = torch::autograd::grad({model->forward(x).square().sum(1).mean()},
                                              {model->parameters()[2]})[0];
  EXPECT_LT(distance(weight_gradient, expected), 1e-12);
}

TEST(FeaturePass, EveryPassOfARunSeesTheSameRandomNumbers) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(3, 8), nn::Dropout(0.5), nn::Linear(8, 2));
  model->to(torch::kFloat64);
  const auto x = torch::randn({6, 3}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [](const at::Tensor& z) { return z.square().mean(); }));
  const auto first = probed.pass()->pass.outputs()[0].clone();
  torch::randn({17});
  EXPECT_EQ(distance(probed.pass()->pass.outputs()[0], first), 0);
  probed.memory = ProbePassMemory();
  EXPECT_GT(distance(probed.pass()->pass.outputs()[0], first), 0);
}

TEST(FeaturePass, OtherDataAreNotComparable) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(3, 8), nn::Linear(8, 2));
  model->to(torch::kFloat64);
  auto x = torch::randn({6, 3}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [](const at::Tensor& z) { return z.square().mean(); }));
  EXPECT_TRUE(probed.pass()->pass.comparable());
  const auto kept = x;
  x = x.slice(0, 0, 5);
  {
    const auto made = probed.pass();
    EXPECT_FALSE(made->pass.comparable());
    ASSERT_EQ(made->pass.take_notices().size(), 1u);
  }
  x = kept.flip(0);
  EXPECT_FALSE(probed.pass()->pass.comparable());
  x = kept;
  torch::NoGradGuard(), model->parameters()[0].mul_(2);
  EXPECT_TRUE(probed.pass()->pass.comparable());
}

TEST(FeaturePass, SaysWhichLayersHaveNoFeaturesAndWhy) {
  torch::manual_seed(1);
  struct OddImpl : nn::Module {
    nn::LSTM lstm{nn::LSTMOptions(3, 4)};
    nn::Linear unused{4, 4};
    nn::Linear head{4, 2};
    OddImpl() {
      register_module("lstm", lstm);
      register_module("unused", unused);
      register_module("head", head);
    }
  };
  auto model = std::make_shared<OddImpl>();
  const auto x = torch::randn({5, 2, 3});
  ProbedModel probed(*model, probe_loss_of([&] { return model->head(std::get<0>(model->lstm(x))); },
                                           [](const at::Tensor& z) { return z.square().mean(); }));
  const auto made = probed.pass();
  ASSERT_EQ(made->pass.uses().size(), 1u);
  const auto notices = made->pass.take_notices();
  ASSERT_EQ(notices.size(), 2u);
  EXPECT_EQ(notices[0].entity, probed.layer("lstm"));
  EXPECT_NE(notices[0].message.find("lstm"), std::string::npos) << notices[0].message;
  EXPECT_EQ(notices[1].entity, probed.layer("unused"));
}

TEST(FeaturePass, ALossThatFailsIsSaidAndLeavesNoTrace) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(3, 2), nn::BatchNorm1d(2));
  const auto x = torch::randn({6, 3});
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [](const at::Tensor&) -> at::Tensor {
                                             throw std::runtime_error("no");
                                           }));
  const auto before = probed.everything();
  EXPECT_THROW((void)probed.pass()->pass.uses(), LossError);
  const auto after = probed.everything();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
}

/// Evaluates features and curvature of a module with an embedding of 9 rows of 4.
void expect_embedding_left_alone(nn::Module& module, const at::Tensor& weight,
                                 const std::function<at::Tensor()>& output) {
  ProbedModel probed(module,
                     probe_loss_of(output, [](const at::Tensor& z) { return z.pow(4).sum(); }));
  const auto before = probed.everything();
  for (int time = 0; time < 2; ++time) {
    {
      const auto made = probed.pass(true);
      const auto& uses = made->pass.uses();
      ASSERT_EQ(uses.size(), 1u);
      EXPECT_LT(uses[0].output.norm(2, {-1}).max().item<float>(), 0.5001f);
      (void)made->pass.line(0, {weight.detach() * 0.9});
    }
    {
      SavedState saved(probed.state, module.parameters());
      ProductMethod method;
      ProbeLossSurface surface("probe_loss", probed.loss, saved, probed.parameters, &method);
      // What the forward pass writes is no function of the weights: it has no second derivatives.
      EXPECT_ANY_THROW((void)surface.hessian_product(torch::ones({36})));
      surface.move(torch::ones({36}) * 0.1);
      (void)surface.value();
      saved.restore();
    }
    const auto after = probed.everything();
    for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
  }
}

TEST(FeaturePass, EmbeddingsThatAreRenormalisedAreLeftAsTheyWere) {
  torch::manual_seed(1);
  nn::Embedding embedding(nn::EmbeddingOptions(9, 4).max_norm(0.5));
  const auto tokens = torch::randint(9, {3, 5});
  expect_embedding_left_alone(*embedding, embedding->weight,
                              [&] { return embedding->forward(tokens); });
}

TEST(FeaturePass, ParametersThatAModuleWritesToAreLeftAsTheyWere) {
  struct Module : nn::Module {
    at::Tensor table = register_parameter("table", torch::randn({9, 4}));
  };
  torch::manual_seed(1);
  const auto module = std::make_shared<Module>();
  const auto tokens = torch::randint(9, {3, 5});
  expect_embedding_left_alone(*module, module->table, [&] {
    return nn::functional::embedding(tokens, module->table,
                                     nn::functional::EmbeddingFuncOptions().max_norm(0.5));
  });
}

TEST(FeaturePass, IsSeenByNoOtherWatch) {
  struct Counter : OperatorListener {
    int seen = 0;
    bool before(const char*, c10::ArrayRef<const c10::IValue>) override {
      ++seen;
      return false;
    }
    void after(const std::vector<c10::IValue>&) override {}
    void writes(const c10::IValue&) override { ++seen; }
  };
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(3, 2), nn::ReLU(nn::ReLUOptions().inplace(true)));
  const auto x = torch::randn({6, 3});
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [](const at::Tensor& z) { return z.square().mean(); }));
  Counter counter;
  const OperatorWatch watch(&counter);
  {
    const at::DisableRecordFunctionGuard as_in_a_session;
    EXPECT_EQ(probed.pass(true)->pass.uses().size(), 1u);
  }
  EXPECT_EQ(counter.seen, 0);
  model->forward(x);
  EXPECT_GT(counter.seen, 0);
}

TEST(FeaturePass, LinesAreTangentsAtOtherParameters) {
  for (const bool twice : {true, false}) {
    torch::manual_seed(1);
    nn::Sequential model(nn::Linear(3, 5), nn::Tanh(), nn::Linear(5, 2));
    model->to(torch::kFloat64);
    const auto x = torch::randn({6, 3}, kWide);
    struct Once : torch::autograd::Function<Once> {
      static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& z) {
        return z * 1;
      }
      static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*,
                                                   torch::autograd::tensor_list d) {
        if (torch::GradMode::is_enabled()) throw std::runtime_error("once only");
        return {d[0]};
      }
    };
    ProbedModel probed(*model, probe_loss_of(
                                   [&] {
                                     const auto z = model->forward(x);
                                     return twice ? z : Once::apply(z);
                                   },
                                   [](const at::Tensor& z) { return z.square().mean(); }));
    const auto made = probed.pass(true);
    const auto before = probed.everything();
    auto there = made->pass.parameters();
    std::vector<at::Tensor> way;
    for (auto& each : there) {
      const auto here = each.clone();
      each = (each * 0.5).add_(torch::sin(each));
      way.push_back(here - each);
    }
    const auto line = made->pass.line(0, there);
    EXPECT_EQ(line.exact, twice);
    const auto value = [&](double along) {
      auto at = there;
      for (size_t i = 0; i < at.size(); ++i) at[i] = at[i] + along * way[i];
      return made->pass.line(0, at).output;
    };
    const auto difference = (value(1e-5) - value(-1e-5)) / 2e-5;
    EXPECT_LT(distance(line.derivative, difference), 1e-8);
    EXPECT_LT(distance(value(0), line.output), 1e-15);
    EXPECT_LT(distance(value(1), made->pass.outputs()[0].reshape(-1)), 1e-14);
    const auto after = probed.everything();
    for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
    // The graph that was kept still belongs to the parameters of now.
    EXPECT_TRUE(made->pass.gradients(0, {})[0].defined());
  }
}

}  // namespace
}  // namespace tycho
