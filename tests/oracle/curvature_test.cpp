// Products, eigenvalues and optimizers' thresholds against dense matrices in float64.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <string>
#include <vector>

#include "curvature/probe_loss_surface.h"
#include "curvature/stability.h"
#include "curvature/user_losses.h"
#include "optimizer_settings.h"
#include "tests/oracle/curvature_networks.h"
#include "tycho/krylov.h"

namespace tycho {
namespace {

std::vector<ProbeLossSurface::Parameter> parameters_of(const CurvedNetwork& network) {
  std::vector<ProbeLossSurface::Parameter> result;
  for (const auto& parameter : network.parameters()) {
    result.push_back({parameter, static_cast<uint32_t>(result.size())});
  }
  return result;
}

ProbeLoss loss_of(const CurvedNetwork& network) {
  ProbeLoss loss;
  loss.output = [&network](int64_t) { return network.output(); };
  loss.loss = [&network](const at::Tensor& output, int64_t) { return network.loss(output); };
  return loss;
}

double relative(const at::Tensor& got, const at::Tensor& expected) {
  return ((got - expected).norm() / (expected.norm() + 1e-300)).item<double>();
}

/// Everything an evaluation could change. Random state first: comparing draws none.
std::vector<at::Tensor> state_of(torch::nn::Module& module) {
  std::vector<at::Tensor> state = {at::globalContext().defaultGenerator(at::kCPU).get_state()};
  for (const auto& parameter : module.parameters()) state.push_back(parameter.detach().clone());
  for (const auto& buffer : module.buffers()) state.push_back(buffer.clone());
  return state;
}

class CurvatureOracle : public ::testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    network = curved_networks()[GetParam()];
    loss = loss_of(network);
    model = std::make_unique<ModelState>(*network.module);
  }
  struct Surface {
    SavedState state;
    ProbeLossSurface surface;
    Surface(CurvatureOracle& test)
        : state(*test.model, test.network.parameters()),
          surface("probe_loss", test.loss, state, parameters_of(test.network), &test.method) {}
    ~Surface() { EXPECT_TRUE(state.restore()); }
    ProbeLossSurface* operator->() { return &surface; }
  };
  std::unique_ptr<Surface> made() { return std::make_unique<Surface>(*this); }
  /// With the random numbers and buffers that a surface made now would see.
  at::Tensor dense() {
    SavedState saved(*model, network.parameters());
    saved.begin();
    const at::Tensor hessian = dense_hessian([&] { return network.value(); }, network.parameters());
    saved.restore();
    return hessian;
  }

  CurvedNetwork network;
  ProbeLoss loss;
  std::unique_ptr<ModelState> model;
  ProductMethod method;
};

TEST_P(CurvatureOracle, ProductsAreThoseOfTheDenseHessianAndLeaveNoTrace) {
  const auto before = state_of(*network.module);
  const auto hessian = dense();
  const int64_t n = hessian.size(0);
  ASSERT_LE(n, 2000);
  {
    const auto held = made();
    Surface& now = *held;
    ASSERT_EQ(now->dimension(), n);
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto v = torch::linspace(-1, repeat, n, torch::kFloat64).sin();
      EXPECT_LT(relative(now->hessian_product(v), torch::mv(hessian, v)), 1e-10) << network.name;
    }
    EXPECT_EQ(method.kind, ProductMethod::kDoubleBackward) << method.reason;
    for (size_t b = 0; b < now->blocks().size(); ++b) {
      const auto& block = now->blocks()[b];
      const auto v = torch::linspace(-1, 2, block.size, torch::kFloat64);
      const auto expected = torch::mv(
          hessian.narrow(0, block.begin, block.size).narrow(1, block.begin, block.size), v);
      EXPECT_LT((now->block_product(b, v) - expected).norm().item<double>(), 1e-10)
          << network.name << " " << b;
    }
  }
  const auto after = state_of(*network.module);
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
}

TEST_P(CurvatureOracle, DifferencesOfGradientsComeNear) {
  if (!network.smooth) return;
  const auto hessian = dense();
  method.kind = ProductMethod::kFiniteDifferences;
  const auto before = state_of(*network.module);
  {
    const auto held = made();
    Surface& now = *held;
    const auto v = torch::linspace(-1, 2, hessian.size(0), torch::kFloat64);
    EXPECT_LT(relative(now->hessian_product(v), torch::mv(hessian, v)), 1e-6) << network.name;
    const auto& block = now->blocks()[0];
    const auto u = torch::linspace(-1, 2, block.size, torch::kFloat64);
    const auto expected =
        torch::mv(hessian.narrow(0, block.begin, block.size).narrow(1, block.begin, block.size), u);
    EXPECT_LT((now->block_product(0, u) - expected).norm().item<double>(),
              1e-6 * (1 + expected.norm().item<double>()));
  }
  const auto after = state_of(*network.module);
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
}

TEST_P(CurvatureOracle, GaussNewtonProductsAreThoseOfTheDenseMatrix) {
  at::Tensor matrix;
  {
    SavedState saved(*model, network.parameters());
    saved.begin();
    matrix = dense_gauss_newton(network);
    saved.restore();
  }
  const auto v = torch::linspace(-1, 2, matrix.size(0), torch::kFloat64);
  EXPECT_LT(relative((*made())->gauss_newton_product(v), torch::mv(matrix, v)), 1e-10)
      << network.name;
}

TEST_P(CurvatureOracle, EigenvaluesAreRightToTheToleranceAndAlwaysWithinTheirBound) {
  const auto hessian = dense();
  const auto exact = std::get<0>(torch::linalg_eigh(hessian)).flip(0);
  const auto held = made();
  Surface& now = *held;
  const LinearMap matrix = [&](const at::Tensor& v) { return now->hessian_product(v); };
  for (const int64_t count : {1, 4}) {
    for (const double tolerance : {1e-1, 1e-3, 1e-6, 1e-9}) {
      for (uint64_t seed = 0; seed < 5; ++seed) {
        auto generator = at::detail::createCPUGenerator(seed);
        EigenOptions options;
        options.count = count;
        options.tolerance = tolerance;
        options.max_products = 400;
        options.random_part = 1e3;  // nothing but random
        const auto start =
            at::randn({hessian.size(0)}, generator, at::TensorOptions().dtype(at::kDouble));
        const auto found = largest_eigenpairs(matrix, start, options, generator);
        EXPECT_TRUE(found.converged);
        ASSERT_EQ(found.values.size(), static_cast<size_t>(count));
        const double scale = std::abs(exact[0].item<double>());
        for (int64_t i = 0; i < count; ++i) {
          const double error = std::abs(found.values[i] - exact[i].item<double>());
          EXPECT_LE(error, found.bounds[i] + 1e-11 * scale)
              << network.name << " " << i << " of " << count << " tolerance " << tolerance;
          EXPECT_LE(error, tolerance * scale + 1e-11 * scale) << network.name << " " << i;
          const auto residual =
              torch::mv(hessian, found.vectors[i]) - found.values[i] * found.vectors[i];
          EXPECT_LT(residual.norm().item<double>(),
                    2 * std::sqrt(std::max(tolerance, 1e-12)) * scale);
        }
      }
    }
  }
}

TEST(CurvatureChunks, SumToTheWhole) {
  torch::manual_seed(7);
  torch::nn::Sequential network(torch::nn::Linear(3, 5), torch::nn::Tanh(),
                                torch::nn::Linear(5, 2));
  network->to(torch::kFloat64);
  const auto x = torch::randn({8, 3}, torch::kFloat64);
  const auto y = torch::randn({8, 2}, torch::kFloat64);
  const auto part = [&](int64_t begin, int64_t end) {
    return torch::mse_loss(network->forward(x.slice(0, begin, end)), y.slice(0, begin, end));
  };
  const auto hessian = dense_hessian([&] { return part(0, 8); }, network->parameters());
  ProbeLoss loss;
  loss.weights = {2 / 8.0, 5 / 8.0, 1 / 8.0};
  loss.loss = [&](const at::Tensor&, int64_t chunk) {
    constexpr int64_t kBegin[] = {0, 2, 7, 8};
    return part(kBegin[chunk], kBegin[chunk + 1]);
  };
  ModelState model(*network);
  std::vector<ProbeLossSurface::Parameter> parameters;
  for (const auto& parameter : network->parameters()) parameters.push_back({parameter, 0});
  const auto v = torch::linspace(-1, 2, hessian.size(0), torch::kFloat64);
  for (const auto kind : {ProductMethod::kUndecided, ProductMethod::kFiniteDifferences}) {
    ProductMethod method{kind, {}};
    SavedState state(model, network->parameters());
    ProbeLossSurface surface("probe_loss", loss, state, parameters, &method);
    const double tolerance = kind == ProductMethod::kUndecided ? 1e-12 : 1e-6;
    for (int repeat = 0; repeat < 2; ++repeat) {
      EXPECT_LT(relative(surface.hessian_product(v), torch::mv(hessian, v)), tolerance);
    }
    EXPECT_NEAR(surface.value().item<double>(), part(0, 8).item<double>(), 1e-13);
  }
}

TEST_P(CurvatureOracle, MovesAndComesBackBitForBit) {
  const auto before = state_of(*network.module);
  {
    const auto held = made();
    Surface& now = *held;
    const double here = now->value().item<double>();
    const auto gradient = now->gradient();
    const auto step = gradient * -1e-3;
    now->move(step);
    const double there = now->value().item<double>();
    EXPECT_LT(there, here);
    EXPECT_NEAR((there - here) / (gradient * step).sum().item<double>(), 1, 0.2);
    now->move({});
    EXPECT_EQ(now->value().item<double>(), here);
    now->move(step);
  }
  const auto after = state_of(*network.module);
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(torch::equal(before[i], after[i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Networks, CurvatureOracle, ::testing::Range<size_t>(0, 5),
                         [](const auto& info) { return curved_networks()[info.param].name; });

// An operator without a second derivative, and one whose second derivative is wrong.

struct OnceDifferentiable : torch::autograd::Function<OnceDifferentiable> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.sin();
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& grads) {
    if (torch::GradMode::is_enabled()) throw std::runtime_error("no double backward\nbacktrace");
    return {grads[0] * context->get_saved_variables()[0].cos()};
  }
};

struct WronglyDifferentiable : torch::autograd::Function<WronglyDifferentiable> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.sin();
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& grads) {
    // Right in value, but the slope's own dependence on x is lost.
    return {grads[0] * context->get_saved_variables()[0].cos().detach()};
  }
};

struct SineImpl : torch::nn::Module {
  at::Tensor weight = register_parameter("weight", torch::linspace(-1, 1, 6, torch::kFloat64));
};

template <typename Sine>
void expect_differences(const std::string& reason) {
  SineImpl module;
  ModelState model(module);
  ProbeLoss loss;
  loss.loss = [&](const at::Tensor&, int64_t) {
    return (Sine::apply(module.weight).pow(2) + 0.1 * module.weight.pow(2)).sum();
  };
  ProductMethod method;
  SavedState state(model, {module.weight});
  ProbeLossSurface surface("probe_loss", loss, state, {{module.weight, 0}}, &method);
  const auto v = torch::ones({6}, torch::kFloat64);
  const auto w = module.weight.detach();
  const auto expected = 2 * (2 * w).cos() + 0.2;
  EXPECT_LT(relative(surface.hessian_product(v), expected), 1e-7);
  EXPECT_EQ(method.kind, ProductMethod::kFiniteDifferences);
  EXPECT_NE(method.reason.find(reason), std::string::npos) << method.reason;
  EXPECT_EQ(method.reason.find("backtrace"), std::string::npos);
}

TEST(CurvatureMethod, DifferencesWhereThereIsNoDoubleBackward) {
  expect_differences<OnceDifferentiable>("no double backward");
}
TEST(CurvatureMethod, DifferencesWhereTheDoubleBackwardIsWrong) {
  expect_differences<WronglyDifferentiable>("differ");
}

// Closed forms.

TEST(CurvatureClosedForms, LinearLogisticAndSoftmaxRegression) {
  torch::manual_seed(3);
  const auto x = torch::randn({20, 4}, torch::kFloat64);
  torch::nn::Linear linear(torch::nn::LinearOptions(4, 1).bias(false));
  torch::nn::Linear classes(torch::nn::LinearOptions(4, 3).bias(false));
  linear->to(torch::kFloat64);
  classes->to(torch::kFloat64);
  const auto y = torch::randn({20, 1}, torch::kFloat64);
  const auto labels = torch::randint(2, {20, 1}).to(torch::kFloat64);
  const auto kinds = torch::randint(3, {20});
  const auto product = [](torch::nn::Module& module, const std::function<at::Tensor()>& value,
                          const at::Tensor& v) {
    ModelState model(module);
    ProbeLoss loss;
    loss.loss = [&](const at::Tensor&, int64_t) { return value(); };
    ProductMethod method;
    SavedState state(model, module.parameters());
    ProbeLossSurface surface("probe_loss", loss, state, {{module.parameters()[0], 0}}, &method);
    return surface.hessian_product(v);
  };
  const auto v = torch::linspace(-1, 2, 4, torch::kFloat64);
  const auto least_squares = torch::matmul(x.t(), x) / 20;
  EXPECT_LT(relative(product(
                         *linear, [&] { return 0.5 * torch::mse_loss(linear(x), y); }, v),
                     torch::mv(least_squares, v)),
            1e-12);
  const auto p = linear(x).sigmoid().detach();
  const auto logistic = torch::matmul(x.t(), x * p * (1 - p)) / 20;
  EXPECT_LT(
      relative(product(
                   *linear,
                   [&] { return torch::binary_cross_entropy_with_logits(linear(x), labels); }, v),
               torch::mv(logistic, v)),
      1e-12);
  const auto s = classes(x).softmax(1).detach();
  at::Tensor softmax = torch::zeros({12, 12}, torch::kFloat64);
  for (int64_t i = 0; i < 20; ++i) {
    const auto outer = torch::diag(s[i]) - torch::outer(s[i], s[i]);
    softmax += torch::kron(outer, torch::outer(x[i], x[i])) / 20;
  }
  const auto u = torch::linspace(-1, 2, 12, torch::kFloat64);
  EXPECT_LT(relative(product(
                         *classes, [&] { return torch::cross_entropy_loss(classes(x), kinds); }, u),
                     torch::mv(softmax, u)),
            1e-12);
}

// Thresholds.

struct ThresholdCase {
  const char* name;
  std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor>)> make;
  /// The update of (x, buffers) on curvature h with the preconditioner held, as a matrix.
  std::function<at::Tensor(double h, double p)> map;
};

constexpr double kRate = 0.05;

at::Tensor matrix2(double a, double b, double c, double d) {
  return torch::tensor({{a, b}, {c, d}}, torch::kFloat64);
}

/// x' = x - rate v' / p, v' = b v + (1 - d) h x.
at::Tensor heavy_ball(double h, double p, double b, double dampening) {
  const double g = (1 - dampening) * h;
  return matrix2(1 - kRate * g / p, -kRate * b / p, g, b);
}

std::vector<ThresholdCase> threshold_cases() {
  namespace optim = torch::optim;
  const auto sgd = [](optim::SGDOptions options) {
    return [options](std::vector<at::Tensor> parameters) {
      return std::make_unique<optim::SGD>(std::move(parameters), options);
    };
  };
  // Adam's m' = b m + (1-b) h x; x' = f x - rate m'/p, where p has the bias corrections.
  const auto adam = [](double h, double p, double b, double f) {
    return matrix2(f - kRate * (1 - b) * h / p, -kRate * b / p, (1 - b) * h, b);
  };
  std::vector<ThresholdCase> all;
  all.push_back({"gradient descent", sgd(optim::SGDOptions(kRate)),
                 [](double h, double p) { return heavy_ball(h, p, 0, 0); }});
  all.push_back({"heavy ball", sgd(optim::SGDOptions(kRate).momentum(0.9)),
                 [](double h, double p) { return heavy_ball(h, p, 0.9, 0); }});
  all.push_back({"dampened", sgd(optim::SGDOptions(kRate).momentum(0.8).dampening(0.3)),
                 [](double h, double) { return heavy_ball(h, 1, 0.8, 0.3); }});
  all.push_back({"Nesterov", sgd(optim::SGDOptions(kRate).momentum(0.9).nesterov(true)),
                 [](double h, double) {
                   // v' = b v + h x; x' = x - rate (h x + b v').
                   const double b = 0.9;
                   return matrix2(1 - kRate * h * (1 + b), -kRate * b * b, h, b);
                 }});
  all.push_back({"weight decay", sgd(optim::SGDOptions(kRate).momentum(0.9).weight_decay(2.0)),
                 [](double h, double p) { return heavy_ball(h, p, 0.9, 0); }});
  all.push_back({"RMSprop",
                 [](std::vector<at::Tensor> parameters) {
                   return std::make_unique<optim::RMSprop>(
                       std::move(parameters),
                       optim::RMSpropOptions(kRate).momentum(0.6).centered(true).eps(1e-3));
                 },
                 [](double h, double p) { return heavy_ball(h, p, 0.6, 0); }});
  all.push_back({"Adagrad",
                 [](std::vector<at::Tensor> parameters) {
                   return std::make_unique<optim::Adagrad>(
                       std::move(parameters), optim::AdagradOptions(kRate).lr_decay(0.1).eps(1e-3));
                 },
                 [](double h, double p) { return heavy_ball(h, p, 0, 0); }});
  all.push_back({"Adam",
                 [](std::vector<at::Tensor> parameters) {
                   return std::make_unique<optim::Adam>(
                       std::move(parameters),
                       optim::AdamOptions(kRate).betas({0.8, 0.99}).eps(1e-3).weight_decay(0.5));
                 },
                 [=](double h, double p) { return adam(h, p, 0.8, 1); }});
  all.push_back(
      {"AdamW",
       [](std::vector<at::Tensor> parameters) {
         return std::make_unique<optim::AdamW>(
             std::move(parameters),
             optim::AdamWOptions(kRate).betas({0.8, 0.99}).weight_decay(3.0).amsgrad(true));
       },
       [=](double h, double p) { return adam(h, p, 0.8, 1 - kRate * 3.0); }});
  return all;
}

Stability stability_now(torch::nn::Module& module, torch::optim::Optimizer& optimizer) {
  ModelState model(module);
  ProbeLoss loss;
  ProductMethod method;
  std::vector<ProbeLossSurface::Parameter> parameters;
  std::vector<at::Tensor> tensors;
  for (const auto& parameter : module.parameters()) {
    parameters.push_back({parameter, static_cast<uint32_t>(tensors.size())});
    tensors.push_back(parameter);
  }
  SavedState state(model, tensors);
  const ProbeLossSurface surface("probe_loss", loss, state, parameters, &method);
  const auto settings = settings_of(settings_fingerprint(optimizer), optimizer, ParameterIds());
  return stability_of(optimizer, settings, surface, tensors);
}

double spectral_radius(const at::Tensor& matrix) {
  return torch::linalg_eigvals(matrix).abs().max().item<double>();
}

TEST(StabilityThreshold, IsWhereTheUpdateMapHasSpectralRadiusOne) {
  for (const ThresholdCase& test : threshold_cases()) {
    torch::manual_seed(4);
    SineImpl module;
    auto optimizer = test.make(module.parameters());
    for (int step = 0; step < 5; ++step) {
      optimizer->zero_grad();
      (module.weight * torch::randn({6}, torch::kFloat64)).sum().backward();
      optimizer->step();
    }
    const Stability stability = stability_now(module, *optimizer);
    ASSERT_EQ(stability.unknown, "") << test.name;
    for (int64_t i = 0; i < 6; ++i) {
      // P may hold the dampening, which the map has already.
      const bool has_state = dynamic_cast<torch::optim::SGD*>(optimizer.get()) == nullptr;
      const double p =
          stability.preconditioner.defined() ? stability.preconditioner[i].item<double>() : 1;
      const double decay = stability.decay.defined() ? stability.decay[i].item<double>() : 0;
      // At the edge P^-1 (h + decay) is the threshold; the gradient then is (h + decay) x.
      const double felt = stability.threshold * p;
      const double scale = has_state ? p : 1;
      EXPECT_NEAR(spectral_radius(test.map(felt, scale)), 1, 1e-9) << test.name;
      EXPECT_GT(spectral_radius(test.map(felt * 1.01, scale)), 1) << test.name;
      EXPECT_LE(spectral_radius(test.map(felt * 0.99, scale)), 1) << test.name;
      EXPECT_GE(decay, 0);
    }
  }
}

TEST(StabilityThreshold, GradientDescentDivergesJustAboveAndNotJustBelow) {
  for (const bool nesterov : {false, true}) {
    for (const double factor : {0.98, 1.02}) {
      SineImpl module;
      torch::optim::SGD optimizer(
          module.parameters(),
          torch::optim::SGDOptions(kRate).momentum(0.7).nesterov(nesterov).weight_decay(0.5));
      const Stability stability = stability_now(module, optimizer);
      const double decay = stability.decay[0].item<double>();
      const double h = factor * stability.threshold - decay;
      for (int step = 0; step < 600; ++step) {
        optimizer.zero_grad();
        (0.5 * h * module.weight.square()).sum().backward();
        optimizer.step();
      }
      const double size = module.weight.detach().norm().item<double>();
      if (factor > 1) {
        EXPECT_GT(size, 10) << nesterov;
      } else {
        EXPECT_LT(size, 1e-1) << nesterov;
      }
    }
  }
}

TEST(StabilityThreshold, GroupsWithTheirOwnSettingsShareOneEdge) {
  // x has rate 0.05 and momentum, y a quarter of the rate: at the edge of both together the map of
  // (x, v, y) has spectral radius one.
  torch::manual_seed(6);
  struct TwoImpl : torch::nn::Module {
    at::Tensor x = register_parameter("x", torch::ones({1}, torch::kFloat64));
    at::Tensor y = register_parameter("y", torch::ones({1}, torch::kFloat64));
  } module;
  namespace optim = torch::optim;
  std::vector<optim::OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<at::Tensor>{module.x},
                      std::make_unique<optim::SGDOptions>(optim::SGDOptions(kRate).momentum(0.6)));
  groups.emplace_back(std::vector<at::Tensor>{module.y},
                      std::make_unique<optim::SGDOptions>(optim::SGDOptions(kRate / 4)));
  optim::SGD optimizer(groups, optim::SGDOptions(kRate));
  const Stability stability = stability_now(module, optimizer);
  const auto hessian = torch::tensor({{3.0, 1.0}, {1.0, 2.0}}, torch::kFloat64);
  const auto root = stability.preconditioner.rsqrt();
  const auto felt = root.unsqueeze(1) * hessian * root.unsqueeze(0);
  const double largest = std::get<0>(torch::linalg_eigh(felt))[1].item<double>();
  const auto at_edge = hessian * (stability.threshold / largest);
  const double a = at_edge[0][0].item<double>();
  const double c = at_edge[0][1].item<double>();
  const double b = at_edge[1][1].item<double>();
  const auto map = torch::tensor({{1 - kRate * a, -kRate * 0.6, -kRate * c},
                                  {a, 0.6, c},
                                  {-kRate / 4 * c, 0.0, 1 - kRate / 4 * b}},
                                 torch::kFloat64);
  EXPECT_NEAR(spectral_radius(map), 1, 1e-9);
}

TEST(StabilityThreshold, IsUnknownWhereTheoryHasNone) {
  SineImpl module;
  torch::optim::LBFGS optimizer(module.parameters());
  EXPECT_NE(stability_now(module, optimizer).unknown, "");
  torch::optim::Adam early(module.parameters());
  EXPECT_NE(stability_now(module, early).unknown, "");
  torch::optim::SGD still(module.parameters(), 0.0);
  EXPECT_NE(stability_now(module, still).unknown, "");
}

// Losses that cannot be used.

std::string failure_of(const std::function<at::Tensor(const at::Tensor& weight)>& value) {
  SineImpl module;
  ModelState model(module);
  std::string said;
  UserLosses losses(model, {{module.weight, 0}},
                    [&](v1::Event::Kind, const std::string& code, const std::string& message) {
                      if (code == "probe_loss_failed") said = message;
                    });
  ProbeLoss loss;
  loss.loss = [&](const at::Tensor&, int64_t) { return value(module.weight); };
  losses.set_probe(std::move(loss));
  Needs needs;
  needs.loss_surface = true;
  torch::optim::SGD optimizer(module.parameters(), 0.1);
  StepView view;
  try {
    losses.open(needs, optimizer, &view);
    if (view.surface != nullptr) {
      (void)view.surface->hessian_product(torch::ones({6}, torch::kFloat64));
    }
  } catch (const LossError& error) {
    losses.suspend(error);
  }
  losses.close();
  EXPECT_EQ(losses.serve(needs), said.empty());
  return said;
}

TEST(UnusableLoss, IsSaidInWordsAndSuspended) {
  EXPECT_EQ(failure_of([](const at::Tensor& w) { return w.square().sum(); }), "");
  const auto contains = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(contains(failure_of([](const at::Tensor& w) { return w.square(); }), "scalar"));
  EXPECT_TRUE(contains(failure_of([](const at::Tensor&) { return at::Tensor(); }), "scalar"));
  EXPECT_TRUE(contains(failure_of([](const at::Tensor& w) { return w.detach().sum(); }),
                       "not differentiable"));
  EXPECT_TRUE(contains(
      failure_of([](const at::Tensor&) { return torch::ones({}, torch::requires_grad()) * 2; }),
      "depends on no parameter"));
  EXPECT_TRUE(
      contains(failure_of([](const at::Tensor& w) { return w.sum() * NAN; }), "not finite"));
  EXPECT_TRUE(contains(failure_of([](const at::Tensor&) -> at::Tensor {
                         throw std::runtime_error("the disk is gone");
                       }),
                       "the disk is gone"));
  int calls = 0;
  EXPECT_TRUE(contains(failure_of([&](const at::Tensor& w) { return w.square().sum() * ++calls; }),
                       "changes between two evaluations"));
  // Randomness that comes from the generators is put back, so that this one is repeatable.
  EXPECT_EQ(
      failure_of([](const at::Tensor& w) { return torch::dropout(w, 0.5, true).square().sum(); }),
      "");
}

}  // namespace
}  // namespace tycho
