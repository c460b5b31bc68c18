// A network of two hidden layers, 32 -> n -> n -> 10, trained for some steps at several widths:
// with the maximal-update parametrization no exponent over width is far from 0, with the standard
// one and Adam those behind a matrix that grows with the width go to 1 (theory T1.8).
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_sweep.h"

namespace tycho::analyzer {
namespace {

using Matrix = Eigen::MatrixXd;

constexpr int kInputs = 32;
constexpr int kOutputs = 10;
constexpr int kExamples = 32;
constexpr int kSteps = 3;
constexpr int kLayers = 3;

enum class Scaling { kMaximalUpdate, kReadoutMultiplier, kStandard };

struct Options {
  Scaling scaling = Scaling::kMaximalUpdate;
  std::vector<int> widths = {128, 256, 512, 1024};
  int seeds = 3;
};

Matrix gaussian(int rows, int columns, double deviation, std::mt19937* generator) {
  std::normal_distribution<double> normal(0, deviation);
  Matrix m(rows, columns);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) m(i, j) = normal(*generator);
  }
  return m;
}

double rms(const Matrix& m) { return std::sqrt(m.squaredNorm() / static_cast<double>(m.size())); }

double spectral_norm(const Matrix& m) {
  Eigen::VectorXd v = Eigen::VectorXd::Ones(m.cols());
  double norm = 0;
  for (int i = 0; i < 30; ++i) {
    v = (m.transpose() * (m * v)).eval();
    norm = v.norm();
    if (!(norm > 0)) return 0;
    v /= norm;
  }
  return std::sqrt(norm);
}

class Network {
 public:
  Network(int width, Scaling scaling, std::mt19937* generator) {
    const int sizes[kLayers + 1] = {kInputs, width, width, kOutputs};
    for (int l = 0; l < kLayers; ++l) {
      const double inputs = sizes[l];
      const bool readout = l == kLayers - 1;
      double deviation = std::sqrt((readout ? 1.0 : 2.0) / inputs);
      if (readout && scaling == Scaling::kMaximalUpdate) deviation = 1 / inputs;
      if (readout && scaling == Scaling::kReadoutMultiplier) deviation = 1;
      weight.push_back(gaussian(sizes[l + 1], sizes[l], deviation, generator));
      double rate = 0.01;
      if (l > 0 && scaling == Scaling::kMaximalUpdate) rate *= 124.0 / width;
      if (l == 1 && scaling == Scaling::kReadoutMultiplier) rate *= 124.0 / width;
      rate_.push_back(rate);
      first_moment_.push_back(Matrix::Zero(sizes[l + 1], sizes[l]));
      second_moment_.push_back(Matrix::Zero(sizes[l + 1], sizes[l]));
    }
    multiplier_ = scaling == Scaling::kReadoutMultiplier ? 1.0 / width : 1.0;
  }

  /// Inputs and outputs of the layers' own operators.
  void forward(const Matrix& x) {
    input.assign(1, x);
    z.clear();
    for (int l = 0; l < kLayers; ++l) {
      z.push_back(weight[static_cast<size_t>(l)] * input.back());
      if (l + 1 < kLayers) input.push_back(z.back().cwiseMax(0.0));
    }
    output = multiplier_ * z.back();
  }

  /// A step of Adam on the mean squared error; the updates are kept.
  void step(const Matrix& target) {
    ++time_;
    Matrix delta = multiplier_ * (output - target) / kExamples;
    update.assign(kLayers, Matrix());
    for (int l = kLayers - 1; l >= 0; --l) {
      const auto i = static_cast<size_t>(l);
      const Matrix gradient = delta * input[i].transpose();
      if (l > 0) {
        delta = ((weight[i].transpose() * delta).array() * (z[i - 1].array() > 0).cast<double>())
                    .matrix();
      }
      first_moment_[i] = 0.9 * first_moment_[i] + 0.1 * gradient;
      second_moment_[i] = 0.99 * second_moment_[i] + 0.01 * gradient.cwiseProduct(gradient);
      const double c1 = 1 - std::pow(0.9, time_);
      const double c2 = 1 - std::pow(0.99, time_);
      update[i] = (-rate_[i] * (first_moment_[i].array() / c1) /
                   ((second_moment_[i].array() / c2).sqrt() + 1e-12))
                      .matrix();
    }
    for (size_t i = 0; i < kLayers; ++i) weight[i] += update[i];
  }

  std::vector<Matrix> weight;
  std::vector<Matrix> update;
  std::vector<Matrix> input;
  std::vector<Matrix> z;
  Matrix output;

 private:
  double multiplier_ = 1;
  int time_ = 0;
  std::vector<double> rate_;
  std::vector<Matrix> first_moment_;
  std::vector<Matrix> second_moment_;
};

RunDigest train(int width, int seed, const Options& options) {
  SweepRun run("w" + std::to_string(width) + "-s" + std::to_string(seed));
  const int sizes[kLayers + 1] = {kInputs, width, width, kOutputs};
  for (int l = 0; l < kLayers; ++l) {
    run->add_parameter(run->add_layer("layers." + std::to_string(l)), "weight",
                       {sizes[l + 1], sizes[l]});
  }
  for (const char* name : {"feature_rms", "feature_change", "effective_update", "propagated_change",
                           "update_spectral_norm", "output_change"})
    run->statistic(name);
  run.optimize("Adam", 0.01);
  run.open();
  std::mt19937 data(7);  // the same examples for all runs
  const Matrix x = gaussian(kInputs, kExamples, 1, &data);
  const Matrix target = gaussian(kOutputs, kExamples, 1, &data);
  std::mt19937 generator(static_cast<uint32_t>(1000 * seed + width));
  Network network(width, options.scaling, &generator);
  network.forward(x);
  const Network start = network;
  for (int step = 0; step < kSteps; ++step) {
    network.step(target);
    network.forward(x);
    std::vector<double> feature;
    std::vector<double> change;
    std::vector<double> effective;
    std::vector<double> propagated;
    std::vector<double> norm;
    for (size_t l = 0; l < kLayers; ++l) {
      feature.push_back(rms(network.z[l]));
      change.push_back(rms(network.z[l] - start.z[l]));
      effective.push_back(rms((network.weight[l] - start.weight[l]) * network.input[l]));
      propagated.push_back(rms(start.weight[l] * (network.input[l] - start.input[l])));
      norm.push_back(spectral_norm(network.update[l]) *
                     std::sqrt(static_cast<double>(sizes[l]) / sizes[l + 1]));
    }
    run->step(step);
    run->put("feature_rms", v1::SCOPE_LAYER, feature);
    run->put("feature_change", v1::SCOPE_LAYER, change);
    run->put("effective_update", v1::SCOPE_LAYER, effective);
    run->put("propagated_change", v1::SCOPE_LAYER, propagated);
    run->put("update_spectral_norm", v1::SCOPE_LAYER, norm);
    run->put("output_change", rms(network.output - start.output));
  }
  return run.take();
}

std::vector<ComparisonFinding> check(const Options& options, int first_seed = 0) {
  std::vector<RunDigest> runs;
  for (const int width : options.widths) {
    for (int seed = first_seed; seed < first_seed + options.seeds; ++seed) {
      runs.push_back(train(width, seed, options));
    }
  }
  return make_coordinate_check()->findings(RunSet(std::move(runs), {}));
}

/// Exponents with their intervals, for the messages of failures.
std::string table(const std::vector<ComparisonFinding>& findings) {
  std::string out;
  for (const ComparisonFinding& finding : findings) {
    out += finding.scope + " " + finding.evidence_statistic + " " + verdict(finding) + " " +
           std::to_string(finding.measured) + " [" + std::to_string(finding.ci_low) + ", " +
           std::to_string(finding.ci_high) + "]\n";
  }
  return out;
}

TEST(CoordinateCheckTest, MaximalUpdateParametrizationHolds) {
  const auto findings = check({});
  const ComparisonFinding finding = whole(findings);
  EXPECT_EQ(verdict(finding), "HOLDS") << table(findings);
  EXPECT_NE(finding.advice.find("Tune the learning rate at width 128"), std::string::npos);
  for (const char* statistic : {"effective_update", "update_spectral_norm", "feature_change"}) {
    const ComparisonFinding hidden = part(findings, statistic, "layer:layers.1");
    EXPECT_EQ(verdict(hidden), "HOLDS") << statistic << " " << hidden.measured;
    EXPECT_EQ(hidden.by_step.size(), static_cast<size_t>(kSteps));
  }
}

TEST(CoordinateCheckTest, StandardParametrizationIsViolatedAndItsMatricesAreNamed) {
  Options options;
  options.scaling = Scaling::kStandard;
  const auto findings = check(options);
  const ComparisonFinding finding = whole(findings);
  EXPECT_EQ(verdict(finding), "VIOLATED") << table(findings);
  // The hidden matrix and the readout are to blame, the first layer, whose input stays, is not.
  EXPECT_NE(finding.advice.find("layers.1 (width^"), std::string::npos) << finding.advice;
  EXPECT_NE(finding.advice.find("layers.2 (width^"), std::string::npos) << finding.advice;
  EXPECT_EQ(finding.advice.find("layers.0 (width^"), std::string::npos) << finding.advice;
  const ComparisonFinding hidden = part(findings, "effective_update", "layer:layers.1");
  EXPECT_EQ(verdict(hidden), "VIOLATED");
  EXPECT_GT(hidden.measured, 0.6);
  EXPECT_LT(hidden.measured, 1.1);
}

TEST(CoordinateCheckTest, AMultiplierBehindTheReadoutIsNotBlamed) {
  Options options;
  options.scaling = Scaling::kReadoutMultiplier;
  const auto findings = check(options);
  EXPECT_EQ(verdict(whole(findings)), "HOLDS") << table(findings);
  const ComparisonFinding readout = part(findings, "effective_update", "layer:layers.2");
  EXPECT_EQ(verdict(readout), "NOT_APPLICABLE");
  EXPECT_GT(readout.measured, 0.5);
}

TEST(CoordinateCheckTest, OneSeedAtThreeWidthsIsSeldomEnough) {
  Options options;
  options.widths = {128, 256, 512};
  options.seeds = 1;
  const ComparisonFinding finding = whole(check(options));
  EXPECT_EQ(verdict(finding), "UNDERPOWERED") << finding.gate;
}

TEST(CoordinateCheckTest, TwoWidthsOrNoneAreNotApplicable) {
  Options options;
  options.widths = {128, 256};
  const ComparisonFinding two = whole(check(options));
  EXPECT_EQ(verdict(two), "NOT_APPLICABLE");
  EXPECT_NE(two.gate.find("three widths"), std::string::npos) << two.gate;
  options.widths = {128};
  EXPECT_EQ(verdict(whole(check(options))), "NOT_APPLICABLE");
}

CalibrationCase rates(const std::string& setting, Expected expected, const Options& options) {
  CalibrationCase result{"coordinate_check", setting, expected, [options](uint32_t seed) {
                           // Networks take seed * 1000 + width.
                           return whole(check(options, static_cast<int>(seed % 1000000)));
                         }};
  result.runs = 20;
  return result;
}

const CalibrationCases kCases({
    rates("maximal-update parametrization, widths of 128 to 1024, three seeds", Expected::kHolds,
          {}),
    rates("standard parametrization with Adam", Expected::kViolated, {Scaling::kStandard}),
    rates("two widths", Expected::kSilent, {Scaling::kMaximalUpdate, {64, 128}, 2}),
});

const ClosedForms kForms({
    {"coordinate_check",
     "exponent over width of the hidden layer's own update, maximal-update parametrization", "0", 0,
     [](uint32_t seed) -> Finding {
       return part(check({}, static_cast<int>(seed % 1000000)), "effective_update",
                   "layer:layers.1");
     },
     0.1},
});

}  // namespace
}  // namespace tycho::analyzer
