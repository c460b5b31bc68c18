// Statistics of feature learning against what is computed by hand in float64.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "built_in.h"
#include "tests/support/probe_harness.h"

namespace tycho {
namespace {

namespace nn = torch::nn;
namespace F = torch::nn::functional;

const auto kWide = torch::dtype(torch::kFloat64);

double rms(const at::Tensor& x) { return x.square().mean().sqrt().item<double>(); }

at::Tensor mean_square(const at::Tensor& z) { return z.square().mean(); }

/// Changes every parameter a little, as a step of training does.
void nudge(nn::Module& model, double size = 0.1) {
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model.parameters()) parameter.add_(torch::randn_like(parameter) * size);
}

// The refined coordinate check.

TEST(Features, OfTwoLinearLayersByHand) {
  torch::manual_seed(1);
  nn::Linear below(3, 5), above(5, 2);
  nn::Sequential model(below, nn::Tanh(), above);
  model->to(torch::kFloat64);
  const auto x = torch::randn({7, 3}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); }, mean_square));
  auto probe = make_features_probe();
  struct State {
    at::Tensor w, b, v, c, h, z, y;
  };
  const auto state = [&] {
    const torch::NoGradGuard no_grad;
    State s;
    s.w = below->weight.clone();
    s.b = below->bias.clone();
    s.v = above->weight.clone();
    s.c = above->bias.clone();
    s.z = torch::matmul(x, s.w.t()) + s.b;
    s.h = torch::tanh(s.z);
    s.y = torch::matmul(s.h, s.v.t()) + s.c;
    return s;
  };
  std::vector<State> states = {state()};
  auto recorded = observe(*probe, probed, 4);
  EXPECT_EQ(recorded.events.count("features_reference"), 1u);
  EXPECT_NEAR(recorded.at("feature_rms@0"), rms(states[0].z), 1e-14);
  EXPECT_FALSE(recorded.has("feature_change@0"));
  for (const int64_t step : {6, 11}) {
    nudge(*model);
    states.push_back(state());
    const State& now = states.back();
    const State& zero = states.front();
    const State& last = states[states.size() - 2];
    const double steps = step == 6 ? 2 : 5;
    recorded = observe(*probe, probed, step);
    EXPECT_NEAR(recorded.at("feature_rms@0"), rms(now.z), 1e-14);
    EXPECT_NEAR(recorded.at("feature_change@0"), rms(now.z - zero.z), 1e-14);
    EXPECT_NEAR(recorded.at("feature_change_relative@2"), rms(now.y - zero.y) / rms(zero.y), 1e-13);
    EXPECT_NEAR(recorded.at("feature_step_change@2"), rms(now.y - last.y) / steps, 1e-14);
    EXPECT_NEAR(recorded.at("effective_update@0"),
                rms(torch::matmul(x, (now.w - zero.w).t()) + now.b - zero.b), 1e-14);
    EXPECT_EQ(recorded.at("propagated_change@0"), 0);
    EXPECT_NEAR(recorded.at("effective_update@2"),
                rms(torch::matmul(now.h, (now.v - zero.v).t()) + now.c - zero.c), 1e-14);
    EXPECT_NEAR(recorded.at("propagated_change@2"), rms(torch::matmul(now.h - zero.h, zero.v.t())),
                1e-14);
    EXPECT_NEAR(recorded.at("output_rms"), rms(now.y), 1e-14);
    EXPECT_NEAR(recorded.at("output_change"), rms(now.y - zero.y), 1e-14);
  }
}

TEST(Features, OfConvolutionNormalisationEmbeddingAndASharedWeightByHand) {
  struct MixedImpl : nn::Module {
    nn::Embedding token{9, 4};
    nn::Conv1d convolution{nn::Conv1dOptions(4, 6, 3).padding(1)};
    nn::LayerNorm norm{nn::LayerNormOptions({6})};
    nn::Linear shared{6, 6};
    MixedImpl() {
      register_module("token", token);
      register_module("convolution", convolution);
      register_module("norm", norm);
      register_module("shared", shared);
    }
    std::vector<at::Tensor> z;  // of each layer; twice of the last
    std::vector<at::Tensor> x;
    at::Tensor forward(const at::Tensor& tokens) {
      z.clear();
      x.clear();
      const auto note = [&](const at::Tensor& in, const at::Tensor& out) {
        x.push_back(in.detach().clone());
        z.push_back(out.detach().clone());
        return out;
      };
      auto h = note(tokens, token(tokens)).transpose(1, 2);
      h = note(h, convolution(h)).transpose(1, 2);
      h = torch::relu(note(h, norm(h)));
      h = torch::tanh(note(h, shared(h)));
      return note(h, shared(h));
    }
  };
  torch::manual_seed(2);
  auto model = std::make_shared<MixedImpl>();
  model->to(torch::kFloat64);
  const auto tokens = torch::randint(9, {3, 5});
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(tokens); }, mean_square));
  auto probe = make_features_probe();
  (void)observe(*probe, probed, 0);
  const auto z0 = model->z;
  const auto x0 = model->x;
  std::vector<at::Tensor> p0;
  for (const auto& p : model->parameters()) p0.push_back(p.detach().clone());
  nudge(*model);
  const auto recorded = observe(*probe, probed, 1);
  const auto z = model->z;
  const auto x = model->x;
  const torch::NoGradGuard no_grad;
  EXPECT_NEAR(recorded.at("feature_change@token"), rms(z[0] - z0[0]), 1e-14);
  EXPECT_EQ(recorded.at("propagated_change@token"), 0);
  EXPECT_NEAR(recorded.at("effective_update@token"), rms(z[0] - z0[0]), 1e-14);
  const auto convolve = [](const at::Tensor& in, const at::Tensor& w, const at::Tensor& b) {
    return torch::conv1d(in, w, b, 1, 1);
  };
  EXPECT_NEAR(
      recorded.at("effective_update@convolution"),
      rms(convolve(x[1], model->convolution->weight - p0[1], model->convolution->bias - p0[2])),
      1e-14);
  EXPECT_NEAR(recorded.at("propagated_change@convolution"), rms(convolve(x[1] - x0[1], p0[1], {})),
              1e-14);
  const auto standard = [](const at::Tensor& in) { return torch::layer_norm(in, {6}); };
  EXPECT_NEAR(recorded.at("effective_update@norm"),
              rms(standard(x[2]) * (model->norm->weight - p0[3]) + model->norm->bias - p0[4]),
              1e-13);
  EXPECT_NEAR(recorded.at("propagated_change@norm"),
              rms((standard(x[2]) - standard(x0[2])) * p0[3]), 1e-13);
  const auto both = [](const at::Tensor& first, const at::Tensor& second) {
    return rms(torch::cat({first.reshape(-1), second.reshape(-1)}));
  };
  EXPECT_NEAR(recorded.at("feature_rms@shared"), both(z[3], z[4]), 1e-14);
  EXPECT_NEAR(recorded.at("feature_change@shared"), both(z[3] - z0[3], z[4] - z0[4]), 1e-14);
  const auto effective = [&](const at::Tensor& in) {
    return torch::matmul(in, (model->shared->weight - p0[5]).t()) + model->shared->bias - p0[6];
  };
  EXPECT_NEAR(recorded.at("effective_update@shared"), both(effective(x[3]), effective(x[4])),
              1e-14);
  EXPECT_NEAR(recorded.at("propagated_change@shared"),
              both(torch::matmul(x[3] - x0[3], p0[5].t()), torch::matmul(x[4] - x0[4], p0[5].t())),
              1e-14);
}

TEST(Features, ChangedShapesOtherDataAndDegenerateNumbers) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(3, 4), nn::Linear(4, 2));
  model->to(torch::kFloat64);
  auto x = torch::randn({6, 3}, kWide);
  int64_t uses = 1;
  ProbedModel probed(*model, probe_loss_of(
                                 [&] {
                                   auto z = model->forward(x);
                                   for (int64_t i = 1; i < uses; ++i) z = z + model->forward(x);
                                   return z;
                                 },
                                 mean_square));
  auto probe = make_features_probe();
  (void)observe(*probe, probed, 0);
  uses = 2;
  auto recorded = observe(*probe, probed, 1);
  EXPECT_TRUE(recorded.values.empty() || !recorded.has("feature_change@0"));
  uses = 1;
  x = torch::randn({6, 3}, kWide);
  recorded = observe(*probe, probed, 2);
  EXPECT_TRUE(recorded.values.empty());
  probed.memory = ProbePassMemory();
  auto fresh = make_features_probe();
  torch::NoGradGuard no_grad;
  for (auto& parameter : model->parameters()) parameter.zero_();
  (void)observe(*fresh, probed, 0);
  recorded = observe(*fresh, probed, 1);
  EXPECT_EQ(recorded.at("feature_rms@0"), 0);
  EXPECT_EQ(recorded.at("feature_change@1"), 0);
  EXPECT_FALSE(recorded.has("feature_change_relative@1"));
  model->parameters()[0].fill_(std::numeric_limits<double>::quiet_NaN());
  recorded = observe(*fresh, probed, 2);
  EXPECT_TRUE(std::isnan(recorded.at("feature_rms@0")));
}

// Representations.

/// HSIC_1 by its definition as a sum over distinct quadruples (Song et al. 2012).
double hsic_of_quadruples(const at::Tensor& k, const at::Tensor& l) {
  const int64_t n = k.size(0);
  const auto a = k.accessor<double, 2>();
  const auto b = l.accessor<double, 2>();
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t q = 0; q < n; ++q) {
        for (int64_t r = 0; r < n; ++r) {
          if (i == j || i == q || i == r || j == q || j == r || q == r) continue;
          sum += a[i][j] * (b[i][j] + b[q][r] - 2 * b[i][q]);
          ++count;
        }
      }
    }
  }
  return sum / static_cast<double>(count);
}

TEST(Representation, IsTheUStatisticOfQuadruples) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Conv2d(1, 3, 2), nn::Tanh(), nn::Flatten(), nn::Linear(12, 4));
  model->to(torch::kFloat64);
  const auto x = torch::randn({7, 1, 3, 3}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); }, mean_square));
  auto probe = make_representation_probe();
  const auto gram = [&](const char* path) {
    const auto made = probed.pass();
    const auto z = probed.uses_of(made->pass, path)[0].output.reshape({7, -1});
    return torch::matmul(z, z.t()).contiguous();
  };
  std::vector<at::Tensor> conv = {gram("0")}, head = {gram("3")};
  EXPECT_TRUE(observe(*probe, probed, 0).values.empty());
  for (int64_t step = 1; step < 3; ++step) {
    nudge(*model, 0.3);
    conv.push_back(gram("0"));
    head.push_back(gram("3"));
    const auto recorded = observe(*probe, probed, step);
    const auto expected = [&](const std::vector<at::Tensor>& k, size_t with) {
      const auto& now = k.back();
      return hsic_of_quadruples(now, k[with]) /
             std::sqrt(hsic_of_quadruples(now, now) * hsic_of_quadruples(k[with], k[with]));
    };
    const auto last = static_cast<size_t>(step - 1);
    EXPECT_NEAR(recorded.at("feature_similarity@0"), expected(conv, 0), 1e-10);
    EXPECT_NEAR(recorded.at("feature_similarity_step@0"), expected(conv, last), 1e-10);
    EXPECT_NEAR(recorded.at("feature_similarity@3"), expected(head, 0), 1e-10);
    EXPECT_NEAR(recorded.at("feature_similarity_step@3"), expected(head, last), 1e-10);
  }
}

TEST(Representation, IsOneForARotationZeroOnAverageForChanceAndAbsentBelowFourExamples) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(20, 16));
  model->to(torch::kFloat64);
  auto x = torch::randn({12, 20}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); }, mean_square));
  auto probe = make_representation_probe();
  (void)observe(*probe, probed, 0);
  const torch::NoGradGuard no_grad;
  const auto rotation = std::get<0>(torch::linalg_qr(torch::randn({16, 16}, kWide)));
  auto weight = model->parameters()[0];
  auto bias = model->parameters()[1];
  weight.copy_(torch::matmul(rotation, weight) * 3);
  bias.add_(100);  // the mean is not seen
  EXPECT_NEAR(observe(*probe, probed, 1).at("feature_similarity@0"), 1, 1e-9);
  // More features than examples, independent of each other: the biased estimator is near 1.
  nn::Linear random(nn::LinearOptions(12, 40).bias(false));
  random->to(torch::kFloat64);
  const auto one_of_each = torch::eye(12, kWide);
  double sum = 0;
  constexpr int kTrials = 200;
  for (int trial = 0; trial < kTrials; ++trial) {
    ProbedModel independent(
        *random, probe_loss_of([&] { return random->forward(one_of_each); }, mean_square));
    auto other = make_representation_probe();
    random->weight.copy_(torch::randn_like(random->weight));
    (void)observe(*other, independent, 0);
    random->weight.copy_(torch::randn_like(random->weight));
    sum += observe(*other, independent, 1).at("feature_similarity@");
  }
  EXPECT_NEAR(sum / kTrials, 0, 0.04);
  x = x.slice(0, 0, 3);
  ProbedModel few(*model, probe_loss_of([&] { return model->forward(x); }, mean_square));
  auto third = make_representation_probe();
  const auto recorded = observe(*third, few, 0);
  EXPECT_EQ(recorded.events.count("feature_similarity_not_observed"), 1u);
}

// Tangent kernels.

/// A network and its outputs by example, for explicit Jacobians.
struct KernelCase {
  std::string name;
  std::shared_ptr<nn::Module> module;
  std::function<at::Tensor()> output;
  int64_t examples;
  bool products = true;
};

std::vector<KernelCase> kernel_cases() {
  torch::manual_seed(3);
  std::vector<KernelCase> all;
  {
    nn::Sequential model(nn::Linear(4, 6), nn::Tanh(), nn::LayerNorm(nn::LayerNormOptions({6})),
                         nn::Linear(6, 3));
    const auto x = torch::randn({5, 4}, kWide);
    all.push_back({"mlp", model.ptr(), [=]() mutable { return model->forward(x); }, 5});
  }
  {
    nn::Sequential model(nn::Linear(4, 6), nn::Tanh(), nn::Linear(6, 1));
    const auto x = torch::randn({5, 4}, kWide);
    all.push_back({"one_output", model.ptr(), [=]() mutable { return model->forward(x); }, 5});
  }
  {
    nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(2, 4, 3).padding(1)), nn::GroupNorm(2, 4),
                         nn::ReLU(nn::ReLUOptions().inplace(true)),
                         nn::Conv2d(nn::Conv2dOptions(4, 4, 2).groups(2).stride(2)), nn::Flatten(),
                         nn::Linear(16, 3));
    const auto x = torch::randn({6, 2, 5, 5}, kWide);
    all.push_back({"convolution", model.ptr(), [=]() mutable { return model->forward(x); }, 6});
  }
  {
    nn::Sequential model(nn::Linear(4, 6), nn::BatchNorm1d(6), nn::Tanh(), nn::Linear(6, 2));
    const auto x = torch::randn({5, 4}, kWide);
    all.push_back(
        {"batch_norm", model.ptr(), [=]() mutable { return model->forward(x); }, 5, false});
  }
  {
    struct SequenceImpl : nn::Module {
      nn::Embedding token{7, 6}, position{4, 6};
      nn::Linear mix{6, 6};
      nn::LayerNorm norm{nn::LayerNormOptions({6})};
      SequenceImpl() {
        register_module("token", token);
        register_module("position", position);
        register_module("mix", mix);
        register_module("norm", norm);
      }
      at::Tensor forward(const at::Tensor& tokens) {
        auto h = token(tokens) + position(torch::arange(4));
        h = h + mix(norm(h));
        h = h + mix(h).mean(1, true);
        return h;
      }
    };
    auto model = std::make_shared<SequenceImpl>();
    const auto tokens = torch::randint(7, {5, 4});
    all.push_back({"sequence", model, [=] { return model->forward(tokens); }, 5});
  }
  {
    struct TiedImpl : nn::Module {
      nn::Embedding token{7, 6};
      nn::Linear mix{6, 6};
      TiedImpl() {
        register_module("token", token);
        register_module("mix", mix);
      }
    };
    auto model = std::make_shared<TiedImpl>();
    const auto tokens = torch::randint(7, {5, 4});
    // Rows of all positions, as a loss wants them.
    all.push_back({"tied", model,
                   [=] {
                     const auto h = torch::tanh(model->mix(model->token(tokens)));
                     return torch::matmul(h, model->token->weight.t()).flatten(0, 1);
                   },
                   5});
  }
  {
    struct RecurrentImpl : nn::Module {
      nn::GRU gru{nn::GRUOptions(3, 4).batch_first(true)};
      nn::Linear head{4, 2};
      RecurrentImpl() {
        register_module("gru", gru);
        register_module("head", head);
      }
    };
    auto model = std::make_shared<RecurrentImpl>();
    const auto x = torch::randn({5, 3, 3}, kWide);
    all.push_back({"recurrent", model,
                   [=] { return model->head(std::get<0>(model->gru(x))).mean(1); }, 5, false});
  }
  for (auto& each : all) each.module->to(torch::kFloat64);
  return all;
}

class TangentKernelOracle : public ::testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Networks, TangentKernelOracle, ::testing::Range<size_t>(0, 7));

TEST_P(TangentKernelOracle, IsThatOfExplicitJacobians) {
  const KernelCase test = kernel_cases()[GetParam()];
  ProbedModel probed(*test.module, probe_loss_of(test.output, mean_square));
  for (const int64_t limit : {int64_t{64}, int64_t{3}}) {
    const auto made = probed.pass(true);
    const auto before = probed.everything();
    const auto kernel = made->pass.tangent_kernel(limit, at::detail::createCPUGenerator(3));
    ASSERT_EQ(kernel.impossible, "");
    const int64_t n = std::min(limit, test.examples);
    ASSERT_EQ(kernel.examples, n);
    EXPECT_EQ(kernel.products, test.products) << test.name;
    const auto output = test.output().reshape({test.examples, -1});
    ASSERT_EQ(kernel.directions.size(1), output.size(1));
    EXPECT_NEAR((kernel.directions.square().sum(1) - 1).abs().max().item<double>(), 0, 1e-12);
    if (output.size(1) == 1) {
      EXPECT_EQ(kernel.directions.min().item<double>(), 1);
    }
    const auto along = (output.slice(0, 0, n) * kernel.directions).sum(1);
    const auto& info = probed.facts.info;
    std::vector<std::vector<at::Tensor>> jacobian(info.layers.size());
    std::vector<at::Tensor> whole;
    for (int64_t i = 0; i < n; ++i) {
      std::vector<std::vector<at::Tensor>> parts(info.layers.size());
      for (const auto& parameter : info.parameters) {
        const auto g =
            torch::autograd::grad({along[i]}, {parameter.tensor}, {}, true, false, true)[0];
        parts[parameter.layer].push_back(
            (g.defined() ? g : torch::zeros_like(parameter.tensor)).reshape(-1));
      }
      std::vector<at::Tensor> row;
      for (size_t layer = 0; layer < parts.size(); ++layer) {
        jacobian[layer].push_back(torch::cat(parts[layer]));
        row.push_back(jacobian[layer].back());
      }
      whole.push_back(torch::cat(row));
    }
    const auto expect = [&](const at::Tensor& got, const std::vector<at::Tensor>& rows,
                            const std::string& what) {
      ASSERT_TRUE(got.defined()) << test.name << " " << what;
      const auto j = torch::stack(rows);
      const auto expected = torch::matmul(j, j.t());
      EXPECT_LT((got - expected).abs().max().item<double>(),
                1e-11 * (1 + expected.abs().max().item<double>()))
          << test.name << " " << what;
    };
    for (const auto& layer : info.layers) {
      expect(kernel.layers[layer.id], jacobian[layer.id], layer.path);
    }
    expect(kernel.whole, whole, "whole");
    const auto after = probed.everything();
    if (test.name == "batch_norm") continue;  // the test's own forward pass changes buffers
    for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
  }
}

TEST(TangentKernel, DistanceVelocityTraceAndAlignmentByHand) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(3, 5), nn::Tanh(), nn::Linear(5, 1));
  model->to(torch::kFloat64);
  const auto x = torch::randn({6, 3}, kWide);
  const auto y = torch::randn({6, 1}, kWide);
  ProbedModel probed(
      *model, probe_loss_of([&] { return model->forward(x); },
                            [&](const at::Tensor& z) { return 3 * (z - y).square().mean(); }));
  auto probe = make_tangent_kernel_probe();
  const auto jacobian = [&] {
    const auto output = model->forward(x).reshape(-1);
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < 6; ++i) {
      std::vector<at::Tensor> parts;
      for (const auto& g : torch::autograd::grad({output[i]}, model->parameters(), {}, true)) {
        parts.push_back(g.reshape(-1));
      }
      rows.push_back(torch::cat(parts));
    }
    return torch::stack(rows);
  };
  const auto flat = [&] {
    std::vector<at::Tensor> parts;
    for (const auto& p : model->parameters()) parts.push_back(p.detach().reshape(-1));
    return torch::cat(parts).clone();
  };
  const auto distance = [](const at::Tensor& a, const at::Tensor& b) {
    return 1 - ((a * b).sum() / (a.norm() * b.norm())).item<double>();
  };
  std::vector<at::Tensor> j = {jacobian()};
  const auto k = [&](size_t i) { return torch::matmul(j[i], j[i].t()); };
  const auto f0 = model->forward(x).detach().reshape(-1);
  const auto theta0 = flat();
  auto recorded = observe(*probe, probed, 3);
  EXPECT_NEAR(recorded.at("kernel_trace"), k(0).trace().item<double>(), 1e-11);
  EXPECT_FALSE(recorded.has("kernel_distance"));
  for (size_t i = 1; i < 4; ++i) {
    nudge(*model, 0.2);
    j.push_back(jacobian());
    recorded = observe(*probe, probed, 3 + 4 * static_cast<int64_t>(i));
    EXPECT_NEAR(recorded.at("kernel_distance"), distance(k(i), k(0)), 1e-12);
    EXPECT_NEAR(recorded.at("kernel_velocity"), distance(k(i), k(i - 1)) / 4, 1e-12);
    const auto part = [&](size_t at) {
      const auto rows = j[at].slice(1, 0, 20);
      return torch::matmul(rows, rows.t());
    };
    EXPECT_NEAR(recorded.at("kernel_distance@0"), distance(part(i), part(0)), 1e-12);
    const auto target = y.reshape(-1);
    EXPECT_NEAR(
        recorded.at("kernel_target_alignment"),
        (target.dot(torch::mv(k(i), target)) / (k(i).norm() * target.dot(target))).item<double>(),
        1e-9);
    const auto change = model->forward(x).detach().reshape(-1) - f0;
    EXPECT_NEAR(recorded.at("linearization_residual"),
                ((change - torch::mv(j[0], flat() - theta0)).norm() / change.norm()).item<double>(),
                1e-10);
  }
}

TEST(TangentKernel, OfALinearModelDoesNotMove) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(4, 3));
  const auto x = torch::randn({6, 4});
  const auto labels = torch::tensor({0, 1, 2, 2, 1, 0});
  auto loss = probe_loss_of([&] { return model->forward(x); },
                            [&](const at::Tensor& z) { return F::cross_entropy(z, labels); });
  loss.labels = [&](int64_t) { return labels; };
  ProbedModel probed(*model, loss);
  auto probe = make_tangent_kernel_probe();
  const double alignment = observe(*probe, probed, 0).at("kernel_target_alignment");
  nudge(*model);
  const auto recorded = observe(*probe, probed, 1);
  EXPECT_NEAR(recorded.at("kernel_distance"), 0, 1e-12);
  EXPECT_NEAR(recorded.at("linearization_residual"), 0, 1e-5);
  EXPECT_NEAR(recorded.at("kernel_target_alignment"), alignment, 1e-6);
  // By hand: K_ij = v_i.v_j (x_i.x_j + 1).
  const auto made = probed.pass(true);
  const auto v =
      made->pass.tangent_kernel(64, at::detail::createCPUGenerator(5 + 0x7a9)).directions;
  const auto k = (torch::matmul(v, v.t()) * (torch::matmul(x, x.t()) + 1)).to(torch::kFloat64);
  const auto y =
      ((F::one_hot(labels, 3).to(torch::kFloat) - 1.0 / 3) * v).sum(1).to(torch::kFloat64);
  EXPECT_NEAR(alignment, (y.dot(torch::mv(k, y)) / (k.norm() * y.dot(y))).item<double>(), 1e-5);
}

TEST(TangentKernel, TargetsAreNotInventedAndWithoutOutputNothingIsSaidButThat) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(4, 3));
  model->to(torch::kFloat64);
  const auto x = torch::randn({6, 4}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [&](const at::Tensor& z) { return z.pow(4).sum(); }));
  auto probe = make_tangent_kernel_probe();
  auto recorded = observe(*probe, probed, 0);
  EXPECT_TRUE(recorded.has("kernel_trace"));
  EXPECT_FALSE(recorded.has("kernel_target_alignment"));
  ProbeLoss only;
  only.loss = [&](const at::Tensor&, int64_t) { return model->forward(x).square().mean(); };
  ProbedModel without(*model, only);
  auto other = make_tangent_kernel_probe();
  recorded = observe(*other, without, 0);
  EXPECT_TRUE(recorded.values.empty());
  EXPECT_EQ(recorded.events.count("tangent_kernel_not_observed"), 1u);
}

// The feature ansatz and FACT.

v1::OptimizerSettings settings_with_decay(const ProbedModel& probed, double decay,
                                          bool decoupled = false) {
  v1::OptimizerSettings settings;
  v1::ParameterGroup* group = settings.add_group();
  group->set_weight_decay(decay);
  group->set_decoupled_weight_decay(decoupled);
  for (const auto& parameter : probed.facts.info.parameters) group->add_parameter(parameter.id);
  return settings;
}

double cosine(const at::Tensor& left, const at::Tensor& right) {
  return ((left * right).sum() / (left.norm() * right.norm())).item<double>();
}

TEST(FeatureAnsatz, OfAWideAndANarrowLayerByExplicitJacobians) {
  torch::manual_seed(1);
  nn::Linear below(4, 7), above(7, 3);
  nn::Sequential model(below, nn::Tanh(), above);
  model->to(torch::kFloat64);
  const auto x = torch::randn({6, 4}, kWide);
  const auto labels = torch::tensor({0, 1, 2, 2, 1, 0});
  ProbedModel probed(
      *model, probe_loss_of([&] { return model->forward(x); },
                            [&](const at::Tensor& z) { return F::cross_entropy(z, labels); }));
  constexpr double kDecay = 0.3;
  const auto settings = settings_with_decay(probed, kDecay);
  auto probe = make_feature_ansatz_probe();
  const auto recorded = observe(*probe, probed, 0, &settings);
  for (const bool upper : {false, true}) {
    const std::string layer = upper ? "2" : "0";
    auto& linear = upper ? above : below;
    const auto w = linear->weight.detach();
    const auto h = (upper ? torch::tanh(below(x)) : x).detach().requires_grad_(true);
    const auto rest = [&](const at::Tensor& input) {
      return upper ? above(input) : above(torch::tanh(below(input)));
    };
    const auto f = rest(h);
    at::Tensor agop = torch::zeros({w.size(1), w.size(1)}, kWide);
    for (int64_t i = 0; i < 6; ++i) {
      for (int64_t c = 0; c < 3; ++c) {
        const auto j = torch::autograd::grad({f[i][c]}, {h}, {}, true)[0][i];
        agop += torch::outer(j, j);
      }
    }
    const auto square = torch::matmul(w.t(), w);
    EXPECT_NEAR(recorded.at("feature_ansatz_alignment@" + layer), cosine(square, agop), 1e-12);
    const auto slope = torch::autograd::grad({F::cross_entropy(rest(h), labels)}, {h})[0];
    const auto fact = -torch::matmul(slope.t(), h.detach()) / kDecay;
    EXPECT_NEAR(recorded.at("fact_alignment@" + layer), cosine(square, fact + fact.t()), 1e-10);
    EXPECT_NEAR(recorded.at("fact_residual@" + layer),
                ((square - fact).norm() / square.norm()).item<double>(), 1e-10);
    EXPECT_NEAR(recorded.at("fact_asymmetry@" + layer),
                ((fact - fact.t()).norm() / fact.norm()).item<double>(), 1e-10);
  }
}

TEST(FeatureAnsatz, OfConvolutionsOnPatchesAndOfManyOutputsBySigns) {
  torch::manual_seed(1);
  nn::Conv2d convolution(nn::Conv2dOptions(2, 5, 2).stride(2));
  nn::Linear head(20, 40);
  nn::Sequential model(convolution, nn::Tanh(), nn::Flatten(), head);
  model->to(torch::kFloat64);
  const auto x = torch::randn({3, 2, 4, 4}, kWide);
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); }, mean_square));
  // Patches [3, 2 * 4, 4 positions] do not overlap.
  const auto patches = torch::im2col(x, {2, 2}, {1, 1}, {0, 0}, {2, 2}).requires_grad_(true);
  const auto w = convolution->weight.detach().reshape({5, 8});
  const auto z = torch::matmul(w, patches) + convolution->bias.detach().unsqueeze(1);
  const auto f = head(torch::tanh(z).flatten(1));
  at::Tensor agop = torch::zeros({8, 8}, kWide);
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t c = 0; c < 40; ++c) {
      const auto j = torch::autograd::grad({f[i][c]}, {patches}, {}, true)[0][i];
      agop += torch::matmul(j, j.t());
    }
  }
  const double exact = cosine(torch::matmul(w.t(), w), agop);
  double sum = 0;
  constexpr int kTrials = 40;
  for (int trial = 0; trial < kTrials; ++trial) {
    auto probe = make_feature_ansatz_probe();
    const auto recorded = observe(*probe, probed, trial);
    sum += recorded.at("feature_ansatz_alignment@0");
    EXPECT_FALSE(recorded.has("fact_alignment@0"));  // no weight decay
  }
  EXPECT_NEAR(sum / kTrials, exact, 0.03);
}

TEST(FeatureAnsatz, FactHoldsAtAStationaryPointAndNotBefore) {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(nn::LinearOptions(3, 6).bias(false)), nn::Tanh(),
                       nn::Linear(nn::LinearOptions(6, 1).bias(false)));
  model->to(torch::kFloat64);
  const auto x = torch::randn({20, 3}, kWide);
  const auto y = torch::sin(x.sum(1, true));
  constexpr double kDecay = 0.01;
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); },
                                           [&](const at::Tensor& z) { return F::mse_loss(z, y); }));
  const auto settings = settings_with_decay(probed, kDecay);
  auto probe = make_feature_ansatz_probe();
  const auto before = observe(*probe, probed, 0, &settings);
  EXPECT_GT(before.at("fact_residual@0"), 0.5);
  EXPECT_GT(before.at("fact_asymmetry@0"), 0.1);
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(0.3).momentum(0.9).weight_decay(kDecay));
  for (int step = 0; step < 20000; ++step) {
    optimizer.zero_grad();
    F::mse_loss(model->forward(x), y).backward();
    optimizer.step();
  }
  const auto after = observe(*probe, probed, 1, &settings);
  for (const std::string layer : {"0", "2"}) {
    EXPECT_LT(after.at("fact_residual@" + layer), 1e-5);
    EXPECT_LT(after.at("fact_asymmetry@" + layer), 1e-5);
    EXPECT_GT(after.at("fact_alignment@" + layer), 1 - 1e-9);
  }
  const auto decoupled = settings_with_decay(probed, kDecay, true);
  const auto other = observe(*probe, probed, 2, &decoupled);
  EXPECT_FALSE(other.has("fact_residual@0"));
  EXPECT_EQ(other.events.count("fact_not_observed"), 1u);
  EXPECT_TRUE(other.has("feature_ansatz_alignment@0"));
}

// Neural collapse.

/// A model whose last features are what is wanted: the input.
struct Collapsed {
  nn::Sequential model;
  at::Tensor h, labels;
  ProbeLoss loss;
  Collapsed(at::Tensor features, at::Tensor classes, const at::Tensor& weight)
      : model(nn::Linear(nn::LinearOptions(weight.size(1), weight.size(0)).bias(false))),
        h(std::move(features)),
        labels(std::move(classes)) {
    model->to(torch::kFloat64);
    torch::NoGradGuard(), model->parameters()[0].copy_(weight);
    loss = probe_loss_of([this] { return model->forward(h); },
                         [this](const at::Tensor& z) { return F::cross_entropy(z, labels); });
    loss.labels = [this](int64_t) { return labels; };
  }
  Recorded observed() {
    ProbedModel probed(*model, loss);
    auto probe = make_neural_collapse_probe();
    return observe(*probe, probed, 0);
  }
};

TEST(NeuralCollapse, OfASimplexIsComplete) {
  // Rows of the centred identity: four points at equal angles with cosine -1/3.
  const auto simplex = torch::eye(4, kWide) - 0.25;
  const auto labels = torch::tensor({0, 1, 2, 3, 3, 2, 1, 0});
  Collapsed made(simplex.index_select(0, labels) * 2 + 7, labels, simplex * 5);
  const auto recorded = made.observed();
  EXPECT_NEAR(recorded.at("class_variability"), 0, 1e-12);
  EXPECT_NEAR(recorded.at("class_mean_norm_variation"), 0, 1e-12);
  EXPECT_NEAR(recorded.at("class_mean_angle_deviation"), 0, 1e-12);
  EXPECT_NEAR(recorded.at("self_duality"), 0, 1e-12);
  EXPECT_EQ(recorded.at("nearest_center_mismatch"), 0);
  EXPECT_EQ(recorded.at("probe_error"), 0);
}

TEST(NeuralCollapse, OfARandomBatchByDenseMatrices) {
  torch::manual_seed(2);
  constexpr int64_t kClasses = 3, kFeatures = 5, kExamples = 40;
  const auto h = torch::randn({kExamples, kFeatures}, kWide);
  const auto labels = torch::randint(kClasses, {kExamples});
  const auto w = torch::randn({kClasses, kFeatures}, kWide);
  Collapsed made(h, labels, w);
  const auto recorded = made.observed();
  std::vector<at::Tensor> means;
  at::Tensor within = torch::zeros({kFeatures, kFeatures}, kWide);
  for (int64_t c = 0; c < kClasses; ++c) {
    const auto rows = h.index({labels.eq(c)});
    means.push_back(rows.mean(0));
    within += torch::matmul((rows - means.back()).t(), rows - means.back()) / kExamples;
  }
  const auto m = torch::stack(means);
  const auto centred = m - m.mean(0, true);
  const auto between = torch::matmul(centred.t(), centred) / kClasses;
  EXPECT_NEAR(
      recorded.at("class_variability"),
      torch::matmul(within, torch::linalg_pinv(between, 1e-10)).trace().item<double>() / kClasses,
      1e-10);
  const auto norms = centred.norm(2, 1);
  EXPECT_NEAR(recorded.at("class_mean_norm_variation"), (norms.std() / norms.mean()).item<double>(),
              1e-12);
  double angle = 0;
  for (int64_t a = 0; a < kClasses; ++a) {
    for (int64_t b = 0; b < kClasses; ++b) {
      if (a != b) angle += std::abs(cosine(centred[a], centred[b]) + 0.5) / 6;
    }
  }
  EXPECT_NEAR(recorded.at("class_mean_angle_deviation"), angle, 1e-12);
  EXPECT_NEAR(recorded.at("self_duality"),
              (w / w.norm() - centred / centred.norm()).square().sum().item<double>(), 1e-12);
  const auto said = torch::matmul(h, w.t()).argmax(1);
  const auto nearest = torch::cdist(h, m).argmin(1);
  EXPECT_NEAR(recorded.at("nearest_center_mismatch"),
              said.ne(nearest).to(torch::kFloat64).mean().item<double>(), 1e-12);
  EXPECT_NEAR(recorded.at("probe_error"), said.ne(labels).to(torch::kFloat64).mean().item<double>(),
              1e-12);
}

TEST(NeuralCollapse, IsAbsentWhereThereIsNone) {
  const auto w = torch::randn({3, 5}, kWide);
  const auto expect_absent = [](Collapsed& made) {
    const auto recorded = made.observed();
    EXPECT_TRUE(recorded.values.empty());
    EXPECT_EQ(recorded.events.count("neural_collapse_not_observed"), 1u);
  };
  Collapsed one_class(torch::randn({4, 5}, kWide), torch::tensor({1, 1, 1, 1}), w);
  expect_absent(one_class);
  Collapsed unlabelled(torch::randn({4, 5}, kWide), torch::tensor({0, 1, 2, 1}), w);
  unlabelled.loss.labels = nullptr;
  expect_absent(unlabelled);
  Collapsed other(torch::randn({4, 5}, kWide), torch::tensor({0, 1, 2, 1}), w);
  other.loss.labels = [](int64_t) { return torch::tensor({0, 1, 7, 1}); };
  expect_absent(other);
  other.loss.labels = [](int64_t) { return torch::tensor({0, 1}); };
  expect_absent(other);
  // All means the same: only what can be said is said.
  Collapsed still(torch::ones({4, 5}, kWide), torch::tensor({0, 1, 2, 1}), w);
  const auto recorded = still.observed();
  EXPECT_FALSE(recorded.has("class_variability"));
  EXPECT_TRUE(recorded.has("probe_error"));
}

// Attention.

TEST(Attention, OfModulesAndOfHandWrittenHeads) {
  torch::manual_seed(1);
  struct HeadsImpl : nn::Module {
    nn::Linear query_key_value{6, 18};
    nn::MultiheadAttention module{nn::MultiheadAttentionOptions(6, 2).dropout(0.3)};
    nn::Linear classes{6, 4};
    at::Tensor p, scores, inner;
    HeadsImpl() {
      register_module("query_key_value", query_key_value);
      register_module("module", module);
      register_module("classes", classes);
    }
    at::Tensor forward(const at::Tensor& x) {  // [batch, context, 6]
      const auto parts =
          query_key_value(x).view({x.size(0), x.size(1), 3, 2, 3}).permute({2, 0, 3, 1, 4});
      const auto future = torch::ones({x.size(1), x.size(1)}, torch::kBool).triu(1);
      scores = torch::matmul(parts[0], parts[1].transpose(-2, -1))
                   .masked_fill(future, -std::numeric_limits<double>::infinity());
      p = scores.softmax(-1);
      const auto mixed =
          torch::matmul(torch::dropout(p, 0.5, true), parts[2]).transpose(1, 2).flatten(2);
      inner = mixed.transpose(0, 1);
      const auto y = std::get<0>(module(inner, inner, inner));
      // No attention: nothing is multiplied by it.
      return classes(y).softmax(-1);
    }
  };
  auto model = std::make_shared<HeadsImpl>();
  model->to(torch::kFloat64);
  const auto x = torch::randn({3, 5, 6}, kWide) * 2;
  ProbedModel probed(*model, probe_loss_of([&] { return model->forward(x); }, mean_square));
  auto probe = make_attention_probe();
  const auto recorded = observe(*probe, probed, 0);
  EXPECT_EQ(recorded.values.size(), 4u);
  const auto entropy = [](const at::Tensor& p) {
    return -torch::xlogy(p, p).sum(-1).mean().item<double>();
  };
  EXPECT_NEAR(recorded.at("attention_entropy@query_key_value"), entropy(model->p), 1e-12);
  EXPECT_EQ(recorded.at("attention_largest_logit@query_key_value"),
            model->scores.max().item<double>());
  const torch::NoGradGuard no_grad;
  const auto all =
      torch::linear(model->inner, model->module->in_proj_weight, model->module->in_proj_bias)
          .view({5, 3, 3, 2, 3})
          .permute({2, 1, 3, 0, 4});
  const auto scores = torch::matmul(all[0], all[1].transpose(-2, -1)) / std::sqrt(3.0);
  EXPECT_NEAR(recorded.at("attention_entropy@module"), entropy(scores.softmax(-1)), 1e-10);
  EXPECT_NEAR(recorded.at("attention_largest_logit@module"), scores.max().item<double>(), 1e-10);
}

}  // namespace
}  // namespace tycho
