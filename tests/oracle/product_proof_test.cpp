// What has to be true of a Hessian-vector product before it is called exact.
#include "curvature/product_proof.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "curvature/probe_loss_surface.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

/// A surface over some tensors, with all that it needs.
struct Surface {
  struct Module : nn::Module {};
  Module module;
  ModelState model{module};
  std::vector<at::Tensor> tensors;
  ProbeLoss loss;
  ProductMethod method;
  std::unique_ptr<SavedState> state;
  std::unique_ptr<ProbeLossSurface> surface;

  Surface(std::vector<at::Tensor> parameters, std::function<at::Tensor()> value)
      : tensors(std::move(parameters)) {
    loss.loss = [value = std::move(value)](const at::Tensor&, int64_t) { return value(); };
    again();
  }
  ~Surface() { state->restore(); }
  void again() {
    surface.reset();
    if (state) state->restore();
    state = std::make_unique<SavedState>(model, tensors);
    std::vector<ProbeLossSurface::Parameter> parameters;
    for (const auto& tensor : tensors) {
      parameters.push_back({tensor, static_cast<uint32_t>(parameters.size())});
    }
    surface = std::make_unique<ProbeLossSurface>("probe_loss", loss, *state, parameters, &method);
  }
  ProbeLossSurface* operator->() { return surface.get(); }
};

at::Tensor leaf(at::IntArrayRef shape, at::ScalarType type = at::kDouble) {
  return torch::randn(shape, at::TensorOptions(type)).requires_grad_(true);
}

double relative(const at::Tensor& got, const at::Tensor& expected) {
  return ((got - expected).norm() / (expected.norm() + 1e-300)).item<double>();
}

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

/// tanh whose slope is right, and whose slope's own derivative is `kept` times what is right.
struct Bent : torch::autograd::Function<Bent> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, double kept) {
    context->save_for_backward({x});
    context->saved_data["kept"] = kept;
    return x.tanh();
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& gradients) {
    const auto x = context->get_saved_variables()[0];
    const double kept = context->saved_data["kept"].toDouble();
    const auto slope = 1 - x.tanh().square();
    return {gradients[0] * (kept * slope + (1 - kept) * slope.detach()), at::Tensor()};
  }
};

/// A small and a large part; only the small one's second derivative is wrong.
TEST(ProductProof, FindsAWrongSecondDerivativeOfOneSmallParameter) {
  torch::manual_seed(1);
  const auto large = leaf({40});
  const auto small = leaf({2});
  for (const double kept : {0.0, 0.9, 0.999}) {
    Surface surface({large, small}, [&] {
      return 1e3 * large.pow(4).sum() + (Bent::apply(small, kept) * 0.1).square().sum();
    });
    const auto v = torch::ones({42}, torch::kFloat64);
    const auto found = surface->hessian_product(v);
    EXPECT_EQ(surface.method.kind, ProductMethod::kFiniteDifferences) << kept;
    const auto t = small.detach().tanh();
    const auto slope = 1 - t.square();
    const auto right = 0.01 * 2 * (slope.square() - 2 * t.square() * slope);
    EXPECT_LT(((found.narrow(0, 40, 2) - right).norm() / found.norm()).item<double>(),
              10 * surface->product_error() + 1e-9)
        << kept;
  }
}

TEST(ProductProof, BelievesOwnFunctionsThatAreRight) {
  torch::manual_seed(2);
  for (const auto type : {at::kDouble, at::kFloat}) {
    const auto w = leaf({30}, type);
    Surface surface({w}, [&] { return (Bent::apply(w, 1.0) + 0.3 * w).square().sum(); });
    (void)surface->hessian_product(torch::ones({30}, at::TensorOptions(type)));
    EXPECT_EQ(surface.method.kind, ProductMethod::kDoubleBackward) << surface.method.reason;
    EXPECT_LT(surface->product_error(), type == at::kDouble ? 1e-9 : 1e-3);
  }
}

TEST(ProductProof, IsMadeAgainNowAndThen) {
  torch::manual_seed(3);
  const auto w = leaf({8});
  double kept = 1;
  Surface surface({w}, [&] { return Bent::apply(w, kept).square().sum(); });
  const auto v = torch::ones({8}, torch::kFloat64);
  (void)surface->hessian_product(v);
  ASSERT_EQ(surface.method.kind, ProductMethod::kDoubleBackward);
  kept = 0;
  for (int64_t i = 0; i < surface.method.proved_every; ++i) {
    surface.again();
    (void)surface->hessian_product(v);
  }
  EXPECT_EQ(surface.method.kind, ProductMethod::kFiniteDifferences);
}

TEST(ProductProof, KinksAreNoErrors) {
  torch::manual_seed(4);
  for (const auto type : {at::kDouble, at::kFloat}) {
    for (int time = 0; time < 4; ++time) {
      nn::Sequential net(nn::Linear(6, 20), nn::ReLU(), nn::Linear(20, 20), nn::ReLU(),
                         nn::Linear(20, 3));
      net->to(type);
      const auto x = torch::randn({64, 6}, at::TensorOptions(type));
      const auto y = torch::randint(3, {64}, torch::kInt64);
      Surface surface(net->parameters(),
                      [&] { return torch::cross_entropy_loss(net->forward(x), y); });
      (void)surface->hessian_product(torch::ones({surface->dimension()}, at::TensorOptions(type)));
      EXPECT_EQ(surface.method.kind, ProductMethod::kDoubleBackward) << surface.method.reason;
    }
  }
}

/// Its backward pass is not that of its forward pass.
struct StraightThrough : torch::autograd::Function<StraightThrough> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.sin();
  }
  static tensor_list backward(AutogradContext* context, const tensor_list& gradients) {
    return {gradients[0] * context->get_saved_variables()[0]};
  }
};

TEST(ProductProof, AGradientThatIsNoneHasNoHessian) {
  torch::manual_seed(5);
  const auto w = leaf({12});
  const auto a = torch::randn({12}, torch::kFloat64);
  Surface surface({w}, [&] { return (StraightThrough::apply(w) * a).sum().square(); });
  EXPECT_THROW((void)surface->hessian_product(torch::ones({12}, torch::kFloat64)), NoProducts);
  EXPECT_EQ(surface.method.kind, ProductMethod::kNone);
  EXPECT_TRUE(std::isfinite(surface->value().item<double>()));
}

/// Gradients of the network in its input, as in physics-informed networks and gradient penalties.
TEST(ProductProof, LossesThatTakeGradientsThemselvesCanBeEvaluated) {
  torch::manual_seed(6);
  nn::Sequential net(nn::Linear(2, 7), nn::Tanh(), nn::Linear(7, 1));
  net->to(torch::kFloat64);
  const auto data = torch::randn({9, 2}, torch::kFloat64);
  const auto value = [&] {
    const auto x = data.clone().requires_grad_(true);
    const auto u = net->forward(x);
    const auto slope = torch::autograd::grad({u.sum()}, {x}, {}, /*retain_graph=*/true,
                                             /*create_graph=*/true)[0];
    return (slope.square().sum(1) - 1).square().mean() + u.square().mean();
  };
  Surface surface(net->parameters(), value);
  const at::NoGradGuard as_in_a_session;
  EXPECT_NO_THROW(surface->check_repeatable());
  double right = 0;
  {
    const at::AutoGradMode with_gradients(true);
    right = value().item<double>();
  }
  EXPECT_EQ(surface->value().item<double>(), right);
  const auto v = torch::linspace(-1, 2, surface->dimension(), torch::kFloat64);
  const auto exact = surface->hessian_product(v);
  EXPECT_EQ(surface.method.kind, ProductMethod::kDoubleBackward) << surface.method.reason;
  surface.method.kind = ProductMethod::kFiniteDifferences;
  EXPECT_LT(relative(surface->hessian_product(v), exact), 1e-6);
}

struct MatrixTrial {
  at::Tensor matrix = at::diag(at::arange(1, 65, at::TensorOptions(at::kDouble)));
  std::vector<LossSurface::Block> blocks = {{0, 0, 32}, {1, 32, 32}};
  ProductTrial trial;
  MatrixTrial() {
    trial.blocks = &blocks;
    trial.options = matrix.options();
    trial.wide = true;
    trial.product = [this](const at::Tensor& v) { return at::mv(matrix, v); };
    trial.difference = [this](const at::Tensor& v, double) { return at::mv(matrix, v); };
  }
};

TEST(ProductProof, MatricesThatAreRightPass) {
  MatrixTrial test;
  const auto verdict = prove_products(test.trial);
  EXPECT_EQ(verdict.kind, ProductVerdict::kProved) << verdict.why;
  EXPECT_LT(verdict.error, 1e-12);
}

TEST(ProductProof, FindsProductsThatAreAnotherEachTime) {
  // As one that reads memory that nobody wrote.
  for (const double garbage : {1e-6, 1e30, std::numeric_limits<double>::quiet_NaN()}) {
    MatrixTrial test;
    int calls = 0;
    test.trial.product = [&](const at::Tensor& v) {
      auto image = at::mv(test.matrix, v);
      if (++calls == 2) image[40] += garbage;
      return image;
    };
    EXPECT_EQ(prove_products(test.trial).kind, ProductVerdict::kRefuted) << garbage;
  }
}

TEST(ProductProof, FindsProductsThatAreNotSymmetric) {
  MatrixTrial test;
  const auto skewed = test.matrix + 1e-3 * at::triu(at::ones({64, 64}, test.matrix.options()));
  test.trial.product = [&](const at::Tensor& v) { return at::mv(skewed, v); };
  test.trial.difference = [&](const at::Tensor& v, double) { return at::mv(skewed, v); };
  const auto verdict = prove_products(test.trial);
  EXPECT_EQ(verdict.kind, ProductVerdict::kRefuted);
  EXPECT_NE(verdict.why.find("symmetric"), std::string::npos) << verdict.why;
}

TEST(ProductProof, RoughDifferencesDecideNothingAndForeignFunctionsGetTheirError) {
  MatrixTrial test;
  test.trial.difference = [&](const at::Tensor& v, double scale) {
    return at::mv(test.matrix, v) * (1 + 0.05 / scale);  // jumps of the gradient, over the way
  };
  EXPECT_EQ(prove_products(test.trial).kind, ProductVerdict::kProved);
  test.trial.foreign = true;
  const auto verdict = prove_products(test.trial);
  EXPECT_EQ(verdict.kind, ProductVerdict::kUndecided);
  EXPECT_NEAR(verdict.error, 0.05, 1e-3);
}

}  // namespace
}  // namespace tycho
