// Spectral norms against dense singular values in float64, convolutions against the matrix that
// they are.
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "matrix/largest_singular_values.h"
#include "matrix/weight_matrix.h"
#include "tests/support/run_contents.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

double largest(const at::Tensor& matrix) {
  return torch::linalg_svdvals(matrix.to(torch::kFloat64)).max().item<double>();
}

GramMatrix gram_of(const at::Tensor& matrix) {
  const ParameterInfo parameter{0, "weight", 0, matrix};
  return WeightMatrix::of(parameter, {0, "", "torch::nn::LinearImpl", {0}}, {})->gram(matrix);
}

LargestSingularValue norm_of(const at::Tensor& matrix, uint64_t seed = 1,
                             const SingularValueOptions& options = {}) {
  return largest_singular_values({gram_of(matrix)}, options,
                                 at::detail::createCPUGenerator(seed))[0];
}

TEST(LargestSingularValue, IsWithinItsToleranceForManyKindsOfSpectra) {
  torch::manual_seed(1);
  std::vector<std::pair<std::string, at::Tensor>> matrices;
  for (const auto& [m, n] : std::vector<std::pair<int64_t, int64_t>>{
           {128, 128}, {512, 128}, {96, 400}, {1000, 20}, {3, 700}, {2000, 500}}) {
    const auto gauss = torch::randn({m, n}, torch::kFloat64);
    matrices.emplace_back("gauss", gauss);
    const auto spike =
        torch::outer(torch::randn({m}, torch::kFloat64), torch::randn({n}, torch::kFloat64));
    matrices.emplace_back("spike", gauss + spike * 5 / std::sqrt(double(std::min(m, n))));
    matrices.emplace_back("signs", gauss.sign());
    matrices.emplace_back("decaying",
                          gauss * torch::arange(1, n + 1, torch::kFloat64).pow(-1).unsqueeze(0));
  }
  const auto orthogonal = std::get<0>(torch::linalg_qr(torch::randn({64, 64}, torch::kFloat64)));
  matrices.emplace_back("orthogonal", orthogonal);
  // Two that are equal, and two that nearly are.
  auto values = torch::linspace(0.1, 0.9, 64, torch::kFloat64);
  values[63] = values[62] = 1;
  matrices.emplace_back("equal", torch::matmul(orthogonal * values, orthogonal.t()));
  values[62] = 0.999;
  matrices.emplace_back("near", torch::matmul(orthogonal * values, orthogonal.t()));
  int total = 0;
  int outside = 0;
  double error = 0;
  for (const auto& [name, matrix] : matrices) {
    const double exact = largest(matrix);
    for (const bool wide : {true, false}) {
      const auto entries = wide ? matrix : matrix.to(torch::kFloat32);
      for (uint64_t seed = 0; seed < 20; ++seed) {
        const auto found = norm_of(entries, seed);
        EXPECT_TRUE(found.finite);
        EXPECT_LE(found.value, exact * (1 + 1e-6)) << name << matrix.sizes();
        EXPECT_LE(found.error, 0.02 * found.value) << name << matrix.sizes();
        EXPECT_LT(found.products, 40);
        ++total;
        outside += exact - found.value > found.error + 1e-6 * exact;
        error += (exact - found.value) / exact;
      }
    }
  }
  // One in a hundred, and three deviations.
  EXPECT_LE(outside, 0.01 * total + 3 * std::sqrt(0.01 * total)) << "of " << total;
  EXPECT_LE(error / total, 0.002);
}

TEST(LargestSingularValue, ReachesATightToleranceAndKnowsWhenItDoesNot) {
  torch::manual_seed(2);
  const auto matrix = torch::randn({60, 40}, torch::kFloat64);
  SingularValueOptions options;
  options.tolerance = 1e-6;
  const auto found = norm_of(matrix, 1, options);
  EXPECT_NEAR(found.value / largest(matrix), 1, 1e-6);
  options.max_products = 3;
  const auto rough = norm_of(matrix, 1, options);
  EXPECT_EQ(rough.products, 3);
  EXPECT_GT(rough.error, 0.05 * rough.value);
  EXPECT_LT(largest(matrix), rough.value + rough.error);
}

TEST(LargestSingularValue, IsRightForMatricesThatHardlyAre) {
  const auto one = torch::full({1, 1}, -3.0, torch::kFloat64);
  EXPECT_DOUBLE_EQ(norm_of(one).value, 3);
  EXPECT_EQ(norm_of(one).products, 1);
  const auto row = torch::arange(1, 6, torch::kFloat64).unsqueeze(0);
  EXPECT_NEAR(norm_of(row).value, std::sqrt(55.0), 1e-12);
  EXPECT_NEAR(norm_of(row.t().contiguous()).value, std::sqrt(55.0), 1e-12);
  const auto wide = torch::outer(torch::ones({2}, torch::kFloat64),
                                 torch::linspace(-1, 1, 100000, torch::kFloat64));
  EXPECT_NEAR(norm_of(wide).value / largest(wide), 1, 1e-12);
  const auto rank_one = torch::outer(torch::linspace(1, 2, 30, torch::kFloat32),
                                     torch::linspace(-1, 1, 50, torch::kFloat32));
  const auto found = norm_of(rank_one);
  EXPECT_NEAR(found.value / largest(rank_one), 1, 1e-6);
  EXPECT_LE(found.products, 2);
  const auto zero = norm_of(torch::zeros({4, 5}, torch::kFloat32));
  EXPECT_EQ(zero.value, 0);
  EXPECT_EQ(zero.error, 0);
  EXPECT_TRUE(zero.finite);
  auto broken = torch::randn({4, 5});
  broken[1][2] = std::nan("");
  EXPECT_FALSE(norm_of(broken).finite);
  broken[1][2] = INFINITY;
  EXPECT_FALSE(norm_of(broken).finite);
}

TEST(LargestSingularValue, MatricesOfDifferentTypesAdvanceTogetherAndRepeatably) {
  torch::manual_seed(4);
  std::vector<GramMatrix> matrices;
  std::vector<double> exact;
  for (int i = 0; i < 6; ++i) {
    const auto matrix =
        torch::randn({10 + 7 * i, 40}, i % 2 == 0 ? torch::kFloat64 : torch::kFloat32);
    matrices.push_back(gram_of(matrix));
    exact.push_back(largest(matrix));
  }
  const auto first = largest_singular_values(matrices, {}, at::detail::createCPUGenerator(5));
  const auto again = largest_singular_values(matrices, {}, at::detail::createCPUGenerator(5));
  for (size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(first[i].value / exact[i], 1, 0.02) << i;
    EXPECT_EQ(first[i].value, again[i].value) << i;
  }
}

// Column by column.
at::Tensor dense(const std::function<at::Tensor(const at::Tensor&)>& map,
                 std::vector<int64_t> input) {
  input.insert(input.begin(), 1);
  int64_t n = 1;
  for (const int64_t size : input) n *= size;
  const auto identity = torch::eye(n, torch::kFloat64);
  std::vector<at::Tensor> columns;
  for (int64_t i = 0; i < n; ++i) {
    columns.push_back(map(identity[i].reshape(input)).reshape(-1));
  }
  return torch::stack(columns, 1);
}

std::string directory(const std::string& name) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("tycho_weights_" + name + "_" + std::to_string(getpid()));
  std::filesystem::remove_all(path);
  return path.string();
}

struct Convolution {
  std::string name;
  nn::AnyModule module;
  at::Tensor weight;
  std::vector<int64_t> input;  // channels and sizes
};

template <typename Module>
Convolution convolution(const std::string& name, Module module, std::vector<int64_t> input) {
  module->to(torch::kFloat64);
  return {name, nn::AnyModule(module), module->weight, std::move(input)};
}

std::vector<Convolution> convolutions() {
  torch::manual_seed(6);
  std::vector<Convolution> all;
  const auto two = [](int64_t in, int64_t out, torch::ExpandingArray<2> kernel) {
    return nn::Conv2dOptions(in, out, kernel).bias(false);
  };
  all.push_back(convolution("plain", nn::Conv2d(two(2, 3, 3)), {2, 6, 5}));
  all.push_back(convolution("padded", nn::Conv2d(two(2, 5, {3, 5}).padding({1, 2})), {2, 6, 5}));
  all.push_back(convolution("strided", nn::Conv2d(two(3, 4, 3).stride(2).padding(1)), {3, 8, 7}));
  all.push_back(convolution("missed", nn::Conv2d(two(1, 2, 2).stride(3)), {1, 7, 9}));
  all.push_back(convolution("dilated", nn::Conv2d(two(2, 2, 3).dilation({1, 2})), {2, 6, 8}));
  all.push_back(convolution("grouped", nn::Conv2d(two(4, 6, 3).groups(2).padding(1)), {4, 5, 5}));
  all.push_back(
      convolution("same", nn::Conv2d(two(2, 3, {4, 3}).padding(torch::kSame)), {2, 6, 6}));
  all.push_back(convolution(
      "one_dimension", nn::Conv1d(nn::Conv1dOptions(3, 4, 5).padding(2).bias(false)), {3, 20}));
  all.push_back(convolution("three_dimensions",
                            nn::Conv3d(nn::Conv3dOptions(2, 2, 2).stride(2).bias(false)),
                            {2, 4, 4, 5}));
  all.push_back(convolution(
      "transposed",
      nn::ConvTranspose2d(
          nn::ConvTranspose2dOptions(3, 2, 3).stride(2).padding(1).output_padding(1).bias(false)),
      {3, 4, 5}));
  all.push_back(convolution(
      "transposed_dilated",
      nn::ConvTranspose1d(
          nn::ConvTranspose1dOptions(4, 4, 3).dilation(3).output_padding(2).groups(2).bias(false)),
      {4, 9}));
  return all;
}

TEST(SpectralNorms, OfConvolutionsAreThoseOfTheMatricesThatTheyAre) {
  for (auto& test : convolutions()) {
    const std::string run = directory(test.name);
    const auto module = test.module.ptr();
    torch::optim::SGD optimizer(module->parameters(), torch::optim::SGDOptions(0.1));
    at::Tensor before;
    std::vector<int64_t> batch = test.input;
    batch.insert(batch.begin(), 4);
    {
      Session session(*module, optimizer,
                      SessionOptions(run).preset(Preset::economy).every("spectral_norms", 1));
      for (int step = 0; step < 3; ++step) {
        optimizer.zero_grad();
        const auto loss =
            test.module.forward<at::Tensor>(torch::randn(batch, torch::kFloat64)).square().mean();
        loss.backward();
        before = test.weight.detach().clone();
        optimizer.step();
        session.step(loss, 4);
      }
    }
    const torch::NoGradGuard no_grad;
    const auto map = [&](const at::Tensor& x) { return test.module.forward<at::Tensor>(x); };
    const auto matrix = dense(map, test.input);
    const auto now = test.weight.detach().clone();
    const double unit =
        std::sqrt(static_cast<double>(matrix.size(1)) / static_cast<double>(matrix.size(0)));
    const RunContents contents(run);
    const double expected = largest(matrix);
    const auto near = [&](const std::string& statistic, double value) {
      EXPECT_NEAR(contents.at(statistic + "@", 2) / value, 1, 0.02) << test.name << statistic;
    };
    near("weight_spectral_norm", expected * unit);
    // The Frobenius norm is exact.
    const double measured = contents.at("weight_spectral_norm@", 2) / unit;
    EXPECT_NEAR(
        contents.at("stable_rank@", 2) * measured * measured / matrix.square().sum().item<double>(),
        1, 1e-12)
        << test.name;
    test.weight.copy_(now - before);
    near("update_spectral_norm", largest(dense(map, test.input)) * unit);
    EXPECT_LE(contents.at("spectral_norm_error@", 2), 0.02) << test.name;
    std::filesystem::remove_all(run);
  }
}

TEST(SpectralNorms, OfATrainedNetworkAreThoseOfItsMatrices) {
  torch::manual_seed(7);
  const std::string run = directory("network");
  nn::Sequential model(nn::Embedding(30, 8), nn::Linear(8, 40), nn::ReLU(), nn::Linear(40, 40),
                       nn::LayerNorm(nn::LayerNormOptions({40})), nn::Linear(40, 2));
  model->to(torch::kFloat64);
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-2));
  std::vector<at::Tensor> first, before, now;
  const auto copy = [&] {
    std::vector<at::Tensor> result;
    for (const auto& parameter : model->parameters()) result.push_back(parameter.detach().clone());
    return result;
  };
  {
    Session session(*model, optimizer,
                    SessionOptions(run).overhead_budget(std::nullopt).every("spectral_norms", 10));
    for (int step = 0; step <= 20; ++step) {
      optimizer.zero_grad();
      const auto loss = model->forward(torch::randint(30, {16})).square().mean();
      loss.backward();
      before = copy();
      optimizer.step();
      session.step(loss, 16);
      now = copy();
      if (step == 0) first = now;
    }
  }
  const RunContents contents(run);
  const struct {
    const char* path;
    size_t parameter;
    double unit;
  } layers[] = {{"0", 0, std::sqrt(1.0 / 8)},
                {"1", 1, std::sqrt(8.0 / 40)},
                {"3", 3, 1},
                {"5", 7, std::sqrt(40.0 / 2)}};
  for (const auto& [path, id, unit] : layers) {
    const auto near = [&, path = path](const std::string& statistic, double value) {
      const double found = contents.at(statistic + "@" + path, 20);
      EXPECT_LE(found, value * (1 + 1e-9)) << statistic << path;
      EXPECT_GE(found, value * 0.98) << statistic << path;
    };
    near("weight_spectral_norm", largest(now[id]) * unit);
    near("update_spectral_norm", largest(now[id] - before[id]) * unit);
    near("change_spectral_norm", largest(now[id] - first[id]) * unit);
    const double rank = now[id].square().sum().item<double>() / std::pow(largest(now[id]), 2);
    EXPECT_NEAR(contents.at(std::string("stable_rank@") + path, 20) / rank, 1, 0.04);
    EXPECT_EQ(contents.values.at(std::string("change_spectral_norm@") + path).count(0), 0U);
  }
  EXPECT_FALSE(contents.has("weight_spectral_norm@4"));  // gains are no matrix
  EXPECT_EQ(contents.events.count("probe_fault_spectral_norms"), 0U);
  std::filesystem::remove_all(run);
}

/// Weights that a test sets by hand before each step.
RunContents recorded(nn::Module& module, const std::vector<std::function<void()>>& changes,
                     const std::string& name) {
  const std::string run = directory(name);
  torch::optim::SGD optimizer(module.parameters(), torch::optim::SGDOptions(0.0));
  {
    Session session(module, optimizer,
                    SessionOptions(run).preset(Preset::economy).every("spectral_norms", 1));
    for (const auto& change : changes) {
      const torch::NoGradGuard no_grad;
      change();
      session.step(1.0, 1);
    }
  }
  RunContents contents(run);
  std::filesystem::remove_all(run);
  return contents;
}

TEST(SpectralNorms, AreThereOrAbsentForAwkwardWeights) {
  nn::Linear layer(nn::LinearOptions(5, 3).bias(false));
  auto weight = layer->weight;
  const double unit = std::sqrt(5.0 / 3);
  const auto contents =
      recorded(*layer,
               {[&] { weight.fill_(0); }, [&] { weight.fill_(1e-30); }, [&] { weight.fill_(1e30); },
                [&] { weight.fill_(NAN); }, [&] { weight.fill_(0).fill_diagonal_(2); },
                [&] { weight.fill_(1e-42); }},
               "awkward");
  EXPECT_EQ(contents.at("weight_spectral_norm@", 0), 0);
  EXPECT_EQ(contents.values.at("stable_rank@").count(0), 0U);
  EXPECT_NEAR(contents.at("weight_spectral_norm@", 1) / (1e-30 * std::sqrt(15) * unit), 1, 1e-5);
  EXPECT_NEAR(contents.at("stable_rank@", 1), 1, 1e-5);
  EXPECT_NEAR(contents.at("weight_spectral_norm@", 2) / (1e30 * std::sqrt(15) * unit), 1, 1e-5);
  EXPECT_NEAR(contents.at("change_spectral_norm@", 2) / (1e30 * std::sqrt(15) * unit), 1, 1e-5);
  EXPECT_EQ(contents.values.at("weight_spectral_norm@").count(3), 0U);
  EXPECT_EQ(contents.events.count("weight_spectral_norm_not_finite"), 1U);
  EXPECT_NEAR(contents.at("weight_spectral_norm@", 4), 2 * unit, 1e-5);
  EXPECT_NEAR(contents.at("stable_rank@", 4), 3, 1e-5);
  EXPECT_EQ(contents.values.at("update_spectral_norm@").count(4), 0U);  // from NaN
  EXPECT_NEAR(contents.at("weight_spectral_norm@", 5) / (1e-42 * std::sqrt(15) * unit), 1, 1e-2);
  EXPECT_EQ(contents.events.count("probe_fault_spectral_norms"), 0U);
}

TEST(SpectralNorms, OfLayersWithSeveralMatricesAreThoseOfEachParameter) {
  torch::manual_seed(8);
  nn::GRU layer(4, 6);
  const auto contents = recorded(*layer, {[] {}, [] {}}, "gru");
  for (const auto& item : layer->named_parameters()) {
    const auto& matrix = item.value();
    if (matrix.dim() != 2) continue;
    const double unit = std::sqrt(static_cast<double>(matrix.size(1)) / matrix.size(0));
    EXPECT_NEAR(contents.at("weight_spectral_norm#" + item.key(), 1) / (largest(matrix) * unit), 1,
                0.02);
    EXPECT_EQ(contents.at("update_spectral_norm#" + item.key(), 1), 0);
  }
  EXPECT_FALSE(contents.has("weight_spectral_norm@"));
}

TEST(SpectralNorms, KernelsThatWereNotSeenAreAbsent) {
  nn::Conv2d layer(nn::Conv2dOptions(2, 3, 3));
  const auto contents = recorded(*layer, {[] {}, [] {}, [] {}}, "unseen");
  EXPECT_FALSE(contents.has("weight_spectral_norm@"));
  EXPECT_EQ(contents.events.count("probe_fault_spectral_norms"), 0U);
}

}  // namespace
}  // namespace tycho
