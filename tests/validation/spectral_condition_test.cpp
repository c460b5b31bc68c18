// A ReLU network under Adam with learning rates of 1/n_in, in the maximal-update parametrization:
// all hidden layers obey the spectral condition. Then one is given another learning rate, or other
// initial weights.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

std::string told(const Finding& f) {
  return f.scope + " " + verdict(f) + " " + std::to_string(f.measured) + " [" +
         std::to_string(f.ci_low) + ", " + std::to_string(f.ci_high) + "] " + f.gate + " / " +
         f.advice;
}

struct Options {
  std::vector<int> width = {8, 64, 32, 96, 64, 64, 2};
  int odd_layer = -1;
  double rate_factor = 1;
  double gain_factor = 1;
  int steps = 300;
  uint32_t seed = 1;
};

double spectral_norm(const Eigen::MatrixXd& m) {
  return std::sqrt(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(
                       m.rows() < m.cols() ? Eigen::MatrixXd(m * m.transpose())
                                           : Eigen::MatrixXd(m.transpose() * m))
                       .eigenvalues()
                       .maxCoeff());
}

std::vector<Finding> train(const Options& options) {
  constexpr int kBatch = 32;
  constexpr double kRate = 0.05;
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  const auto gaussian = [&](int rows, int columns) {
    Eigen::MatrixXd m(rows, columns);
    for (int i = 0; i < m.size(); ++i) m.data()[i] = normal(generator);
    return m;
  };
  const size_t layers = options.width.size() - 1;
  std::vector<Eigen::MatrixXd> w, first, second;
  Engine engine;
  SimulatedRun run(engine);
  for (size_t l = 0; l < layers; ++l) {
    const int in = options.width[l];
    const int out = options.width[l + 1];
    const double gain = static_cast<int>(l) == options.odd_layer ? options.gain_factor : 1;
    w.push_back(gain * std::sqrt(2.0 / in) * gaussian(out, in));
    first.push_back(Eigen::MatrixXd::Zero(out, in));
    second.push_back(Eigen::MatrixXd::Zero(out, in));
    run.add_parameter(run.add_layer(std::to_string(2 * l)), "weight", {out, in});
  }
  for (const char* name : {"weight_spectral_norm", "update_spectral_norm"}) run.statistic(name);
  run.open();
  const Eigen::MatrixXd teacher = gaussian(options.width.back(), options.width.front());
  for (int step = 0; step < options.steps; ++step) {
    const Eigen::MatrixXd x = gaussian(options.width.front(), kBatch);
    const Eigen::MatrixXd y = (teacher * x).array().sin();
    std::vector<Eigen::MatrixXd> input = {x};
    for (size_t l = 0; l + 1 < layers; ++l) input.push_back((w[l] * input[l]).cwiseMax(0));
    Eigen::MatrixXd d = (w.back() * input.back() - y) / kBatch;
    std::vector<double> weights(layers);
    std::vector<double> updates(layers);
    for (size_t l = layers; l-- > 0;) {
      const Eigen::MatrixXd g = d * input[l].transpose();
      if (l > 0) {
        d = ((w[l].transpose() * d).array() * (input[l].array() > 0).cast<double>()).matrix();
      }
      first[l] = 0.9 * first[l] + 0.1 * g;
      second[l] = 0.99 * second[l] + 0.01 * g.cwiseAbs2();
      const double factor = static_cast<int>(l) == options.odd_layer ? options.rate_factor : 1;
      const Eigen::MatrixXd update =
          -factor * kRate / static_cast<double>(w[l].cols()) *
          (first[l].array() / (1 - std::pow(0.9, step + 1)) /
           ((second[l].array() / (1 - std::pow(0.99, step + 1))).sqrt() + 1e-12))
              .matrix();
      w[l] += update;
      const double unit = std::sqrt(static_cast<double>(w[l].cols()) / w[l].rows());
      if (step % 5 != 0) continue;
      weights[l] = unit * spectral_norm(w[l]);
      updates[l] = unit * spectral_norm(update);
    }
    run.step(step);
    if (step % 5 != 0) continue;
    run.put("weight_spectral_norm", v1::SCOPE_LAYER, weights);
    run.put("update_spectral_norm", v1::SCOPE_LAYER, updates);
  }
  run.finish();
  return engine.findings();
}

TEST(SpectralConditionTest, TheMaximalUpdateParametrizationHasIt) {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    Options options;
    options.seed = seed;
    const auto findings = train(options);
    const Finding run = find(findings, "spectral_condition", "run");
    EXPECT_EQ(verdict(run), "HOLDS") << told(run);
    EXPECT_LT(run.measured, 5) << told(run);
    for (const char* layer : {"layer:2", "layer:4", "layer:6", "layer:8"}) {
      const Finding finding = find(findings, "spectral_condition", layer);
      EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
    }
    // Described only.
    for (const char* layer : {"layer:0", "layer:10"})
      EXPECT_EQ(verdict(find(findings, "spectral_condition", layer)), "NOT_APPLICABLE");
  }
}

TEST(SpectralConditionTest, ALayerWithAnotherLearningRateIsNamed) {
  for (const double factor : {0.02, 50.0}) {
    Options options;
    options.odd_layer = 2;
    options.rate_factor = factor;
    const auto findings = train(options);
    const Finding run = find(findings, "spectral_condition", "run");
    EXPECT_EQ(verdict(run), "VIOLATED") << told(run);
    EXPECT_NE(run.advice.find("layer:4."), std::string::npos) << told(run);
    const Finding layer = find(findings, "spectral_condition", "layer:4");
    EXPECT_EQ(verdict(layer), "VIOLATED") << told(layer);
    EXPECT_EQ(verdict(find(findings, "spectral_condition", "layer:2")), "HOLDS");
  }
}

TEST(SpectralConditionTest, ALayerWithOtherInitialWeightsIsNamed) {
  Options options;
  options.odd_layer = 3;
  options.gain_factor = 30;
  const auto findings = train(options);
  const Finding layer = find(findings, "spectral_condition", "layer:6");
  EXPECT_EQ(verdict(layer), "VIOLATED") << told(layer);
  EXPECT_NE(layer.advice.find("amplify"), std::string::npos) << told(layer);
}

TEST(SpectralConditionTest, StaysSilentWithoutItsGate) {
  Options shallow;
  shallow.width = {8, 64, 64, 2};
  shallow.steps = 100;
  EXPECT_EQ(verdict(find(train(shallow), "spectral_condition", "run")), "NOT_APPLICABLE");
  Options few;
  few.steps = 30;
  EXPECT_EQ(verdict(find(train(few), "spectral_condition", "run")), "NOT_YET");
}

CalibrationCase rates(const std::string& setting, Expected expected, const Options& options) {
  return {"spectral_condition", setting, expected, [options](uint32_t seed) {
            Options seeded = options;
            seeded.seed = seed;
            return find(train(seeded), "spectral_condition", "run");
          }};
}

const CalibrationCases kCases({
    rates("network of unequal widths in the maximal update parametrization", Expected::kHolds, {}),
    rates("the same, one layer at 50 times the learning rate", Expected::kViolated,
          {{8, 64, 32, 96, 64, 64, 2}, 2, 50}),
    rates("two hidden layers", Expected::kSilent, {{8, 64, 64, 2}, -1, 1, 1, 100}),
});

}  // namespace
}  // namespace tycho::analyzer
