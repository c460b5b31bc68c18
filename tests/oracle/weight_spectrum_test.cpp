// Spectra of weights: noise is found to be noise, what stands out of it is counted, and a tail is
// called a power law where it is one.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "matrix/marchenko_pastur.h"
#include "matrix/power_law.h"
#include "tests/support/run_contents.h"

namespace tycho {
namespace {

namespace nn = torch::nn;

std::vector<double> sorted(const at::Tensor& values) {
  const auto ascending = std::get<0>(values.to(torch::kFloat64).contiguous().sort());
  return {ascending.data_ptr<double>(), ascending.data_ptr<double>() + ascending.numel()};
}

std::vector<double> descending(const at::Tensor& values) {
  auto result = sorted(values);
  std::reverse(result.begin(), result.end());
  return result;
}

at::Tensor singular_values(const at::Tensor& matrix) {
  return torch::linalg_svdvals(matrix.to(torch::kFloat64));
}

TEST(MarchenkoPastur, IsTheIntegralOfItsDensity) {
  for (const double ratio : {1.0, 0.5, 0.25, 0.02}) {
    const MarchenkoPastur law(ratio);
    const double a = law.lower_edge();
    const double b = law.upper_edge();
    // The density itself, by the midpoint rule: slow to converge at the edges.
    constexpr int kPoints = 2000000;
    double sum = 0;
    int next = 1;
    for (int i = 0; i < kPoints && next < 10; ++i) {
      const double x = a + (b - a) * (i + 0.5) / kPoints;
      sum += std::sqrt((b - x) * (x - a)) / (2 * M_PI * ratio * x) * (b - a) / kPoints;
      if (i + 1 == next * (kPoints / 10)) {
        EXPECT_NEAR(law.cumulative(a + (b - a) * next / 10), sum, 2e-3) << ratio << " " << next;
        ++next;
      }
    }
    for (const double p : {0.01, 0.3, 0.5, 0.99}) {
      EXPECT_NEAR(law.cumulative(law.quantile(p)), p, 2e-5) << ratio;
    }
    EXPECT_EQ(law.cumulative(a - 1), 0);
    EXPECT_EQ(law.cumulative(b + 1), 1);
  }
}

TEST(MarchenkoPastur, NoiseHasTheEdgesOfTheory) {
  torch::manual_seed(1);
  const auto values = singular_values(0.7 * torch::randn({2000, 500}, torch::kFloat64));
  const auto eigenvalues = values.square() / 2000;
  EXPECT_NEAR(eigenvalues.max().item<double>(), 1.1025, 0.02);
  EXPECT_NEAR(eigenvalues.min().item<double>(), 0.1225, 0.005);
  const auto bulk = fit_bulk(descending(values), 2000);
  ASSERT_TRUE(bulk);
  EXPECT_NEAR(bulk->deviation, 0.7, 0.002);
  EXPECT_NEAR(bulk->edge * bulk->edge / 2000, 1.1025, 0.007);
  EXPECT_EQ(bulk->spikes, 0);
  EXPECT_LT(bulk->distance, 0.01);
}

TEST(MarchenkoPastur, FindsSpikesInNoiseOfItsOwnVarianceOnly) {
  torch::manual_seed(2);
  for (const auto& [m, n] :
       std::vector<std::pair<int64_t, int64_t>>{{400, 100}, {256, 256}, {64, 800}}) {
    const double edge = std::sqrt(double(m)) + std::sqrt(double(n));
    const auto u = std::get<0>(torch::linalg_qr(torch::randn({m, m}, torch::kFloat64)));
    const auto v = std::get<0>(torch::linalg_qr(torch::randn({n, n}, torch::kFloat64)));
    auto matrix = torch::randn({m, n}, torch::kFloat64);
    for (int i = 0; i < 7; ++i) {
      matrix = matrix + (2 + i) * edge * torch::outer(u.select(1, i), v.select(1, i));
    }
    const auto bulk = fit_bulk(descending(singular_values(0.3 * matrix)), std::max(m, n));
    ASSERT_TRUE(bulk);
    EXPECT_EQ(bulk->spikes, 7) << m << " " << n;
    // Seven directions fewer.
    EXPECT_NEAR(bulk->edge / (0.3 * edge), 1, 0.03) << m << " " << n;
  }
}

TEST(MarchenkoPastur, NoiseOfAnyDistributionHasSpikesRarely) {
  torch::manual_seed(3);
  int matrices = 0;
  int alarms = 0;
  for (const auto& [m, n] : std::vector<std::pair<int64_t, int64_t>>{
           {30, 30}, {128, 128}, {300, 40}, {100, 200}, {25, 1000}}) {
    for (int repeat = 0; repeat < 60; ++repeat) {
      const auto gauss = torch::randn({m, n}, torch::kFloat64);
      const auto matrix = repeat % 3 == 0   ? gauss
                          : repeat % 3 == 1 ? torch::rand({m, n}, torch::kFloat64) - 0.5
                                            : gauss.sign();
      const auto bulk = fit_bulk(descending(singular_values(matrix)), std::max(m, n));
      ASSERT_TRUE(bulk);
      ++matrices;
      alarms += bulk->spikes > 0;
    }
  }
  // 1 % by the margin, and the variance is fitted: 2 % allowed for, within three deviations.
  EXPECT_LE(alarms, 0.02 * matrices + 3 * std::sqrt(0.02 * matrices)) << "of " << matrices;
}

TEST(MarchenkoPastur, HasNothingToSayOfFewOrDegenerateValues) {
  EXPECT_FALSE(fit_bulk({}, 0));
  EXPECT_FALSE(fit_bulk(std::vector<double>(19, 1.0), 40));
  EXPECT_FALSE(fit_bulk(std::vector<double>(40, 0.0), 40));
  std::vector<double> low_rank(40, 0.0);
  low_rank[0] = 3;
  EXPECT_FALSE(fit_bulk(low_rank, 40));
  const auto orthogonal = fit_bulk(std::vector<double>(40, 1.0), 40);
  ASSERT_TRUE(orthogonal);
  EXPECT_GT(orthogonal->distance, 0.4);  // not noise
}

TEST(PowerLaw, RecoversTheExponentOfParetoSamples) {
  torch::manual_seed(4);
  for (const double exponent : {2.0, 3.0, 4.5}) {
    int accepted = 0;
    int within = 0;
    constexpr int kRepeats = 60;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      const auto sample = sorted(3 * torch::rand({1000}, torch::kFloat64).pow(-1 / (exponent - 1)));
      const auto fit = fit_power_law(sample);
      ASSERT_TRUE(fit);
      within += std::abs(fit->exponent - exponent) < 3 * fit->standard_error;
      accepted += is_power_law(sample, *fit, static_cast<uint64_t>(repeat));
    }
    EXPECT_GE(within, kRepeats - 3) << exponent;
    // A tenth is refused by the test of fit: 0.1 n + 3 deviations.
    EXPECT_GE(accepted, 0.9 * kRepeats - 3 * std::sqrt(0.09 * kRepeats)) << exponent;
  }
}

TEST(PowerLaw, LetsTheTailBeginWhereItBegins) {
  torch::manual_seed(5);
  const auto body = torch::rand({1500}, torch::kFloat64) + 0.2;
  const auto tail = 1.2 * torch::rand({700}, torch::kFloat64).pow(-1 / 1.5);
  const auto sample = sorted(torch::cat({body, tail}));
  const auto fit = fit_power_law(sample);
  ASSERT_TRUE(fit);
  EXPECT_NEAR(fit->exponent, 2.5, 3 * fit->standard_error);
  EXPECT_NEAR(fit->minimum, 1.2, 0.25);
  EXPECT_TRUE(is_power_law(sample, *fit, 1));
}

TEST(PowerLaw, TailsOfOtherDistributionsAreNone) {
  torch::manual_seed(6);
  const std::vector<std::pair<std::string, std::function<at::Tensor(int64_t)>>> others = {
      {"exponential", [](int64_t n) { return -torch::rand({n}, torch::kFloat64).log(); }},
      {"normal", [](int64_t n) { return torch::randn({n}, torch::kFloat64).abs(); }},
      {"uniform", [](int64_t n) { return torch::rand({n}, torch::kFloat64); }},
      {"log-normal", [](int64_t n) { return (0.5 * torch::randn({n}, torch::kFloat64)).exp(); }},
      {"noise",
       [](int64_t n) {
         return singular_values(torch::randn({n, n}, torch::kFloat64)).square();
       }},
  };
  for (const auto& [name, draw] : others) {
    int accepted = 0;
    for (int repeat = 0; repeat < 60; ++repeat) {
      const auto sample = sorted(draw(repeat % 2 == 0 ? 100 : 300));
      const auto fit = fit_power_law(sample);
      accepted += fit && is_power_law(sample, *fit, static_cast<uint64_t>(repeat));
    }
    EXPECT_LE(accepted, 3) << name << " of 60";
  }
}

TEST(PowerLaw, HasNothingToSayOfFewOrEqualValues) {
  EXPECT_FALSE(fit_power_law({}));
  EXPECT_FALSE(fit_power_law(std::vector<double>(24, 1.0)));
  EXPECT_FALSE(fit_power_law(std::vector<double>(100, 1.0)));
  EXPECT_FALSE(fit_power_law(std::vector<double>(100, 0.0)));
  std::vector<double> two(50, 1.0);
  two.insert(two.end(), 50, 2.0);
  const auto fit = fit_power_law(two);
  EXPECT_TRUE(!fit || !is_power_law(two, *fit, 1));
}

std::string directory(const std::string& name) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("tycho_spectrum_" + name + "_" + std::to_string(getpid()));
  std::filesystem::remove_all(path);
  return path.string();
}

TEST(WeightSpectrum, IsRecordedForEachMatrixAndAbsentWhereThereIsNone) {
  torch::manual_seed(7);
  const std::string run = directory("network");
  nn::Sequential model(nn::Linear(300, 200), nn::Linear(60, 60), nn::Linear(4, 1),
                       nn::LayerNorm(nn::LayerNormOptions({5})), nn::Linear(50, 50),
                       nn::Conv2d(nn::Conv2dOptions(8, 32, 3)), nn::Linear(1, 1),
                       nn::Linear(400, 400));
  std::vector<at::Tensor> weights;
  for (size_t i = 0; i < model->size(); ++i) weights.push_back(model[i]->parameters()[0]);
  {
    const torch::NoGradGuard no_grad;
    weights[1].zero_();
    weights[1][3][5] = 2;  // rank one
    weights[4][2][2] = NAN;
    const auto u = std::get<0>(torch::linalg_qr(torch::randn({400, 400}, torch::kFloat64)));
    const auto v = std::get<0>(torch::linalg_qr(torch::randn({400, 400}, torch::kFloat64)));
    const auto squares = torch::rand({400}, torch::kFloat64).pow(-1 / 1.5);  // exponent 2.5
    weights[7].copy_(torch::matmul(u * squares.sqrt(), v.t()));
    weights[0].mul_(1e-30);
  }
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.0));
  {
    Session session(*model, optimizer,
                    SessionOptions(run).preset(Preset::economy).every("weight_spectrum", 1));
    session.step(1.0, 1);
    const torch::NoGradGuard no_grad;
    for (const auto& weight : weights) weight.zero_();
    session.step(1.0, 1);
  }
  const RunContents contents(run);
  std::filesystem::remove_all(run);
  EXPECT_EQ(contents.events.count("probe_fault_weight_spectrum"), 0U);
  // Uniform entries in +-1/sqrt(300), times 1e-30.
  const double deviation = 1e-30 / std::sqrt(300.0 * 3);
  EXPECT_NEAR(
      contents.at("spectrum_edge@0", 0) / (deviation * (std::sqrt(300.0) + std::sqrt(200.0))), 1,
      0.02);
  EXPECT_EQ(contents.at("spectrum_spikes@0", 0), 0);
  EXPECT_LT(contents.at("spectrum_bulk_distance@0", 0), 0.03);
  EXPECT_FALSE(contents.has("tail_exponent@0"));
  EXPECT_TRUE(contents.has("tail_distance@0"));
  EXPECT_NEAR(contents.at("effective_rank@1", 0), 1, 1e-12);
  EXPECT_FALSE(contents.has("spectrum_edge@1"));
  EXPECT_FALSE(contents.has("tail_distance@1"));
  EXPECT_EQ(contents.at("effective_rank@2", 0), 1);
  EXPECT_FALSE(contents.has("effective_rank@3"));
  EXPECT_FALSE(contents.has("effective_rank@4") && contents.values.at("effective_rank@4").count(0));
  EXPECT_EQ(contents.events.count("weight_spectrum_not_finite"), 1U);
  EXPECT_GT(contents.at("effective_rank@5", 0), 20);
  EXPECT_LE(contents.at("effective_rank@5", 0), 32);
  EXPECT_EQ(contents.at("effective_rank@6", 0), 1);
  const double error = contents.standard_errors.at("tail_exponent@7").at(0);
  EXPECT_NEAR(contents.at("tail_exponent@7", 0), 2.5, 3 * error);
  EXPECT_LT(error, 0.2);
  // All zero: nothing.
  for (const auto& [key, series] : contents.values) {
    if (key.find("effective_rank") == 0) {
      EXPECT_EQ(series.count(1), 0U) << key;
    }
  }
}

TEST(WeightSpectrum, EffectiveRankIsTheExponentialOfTheEntropy) {
  torch::manual_seed(8);
  const std::string run = directory("rank");
  nn::Linear layer(40, 30);
  torch::optim::SGD optimizer(layer->parameters(), torch::optim::SGDOptions(0.0));
  {
    Session session(*layer, optimizer,
                    SessionOptions(run).preset(Preset::economy).every("effective_rank", 1));
    session.step(1.0, 1);
    const torch::NoGradGuard no_grad;
    layer->weight.copy_(torch::eye(30, 40));
    session.step(1.0, 1);
  }
  const RunContents contents(run);
  std::filesystem::remove_all(run);
  EXPECT_NEAR(contents.at("effective_rank@", 1), 30, 1e-9);
  EXPECT_LT(contents.at("effective_rank@", 0), 30);
}

}  // namespace
}  // namespace tycho
