// Softmax regression on clusters, whose Hessian is small enough to be diagonalised, and spectra
// that are made up.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

Finding judge_spectra(int classes, const std::function<std::vector<double>(int)>& spectrum,
                      int steps = 40, double error = 0, bool translation = true) {
  Engine engine;
  SimulatedRun run(engine);
  const uint32_t layer = run.add_layer("0");
  run.add_parameter(layer, "weight", {classes, 10});
  for (const char* name :
       {"hessian_eigenvalue", "hessian_eigenvalue_error_bound", "top_subspace_fraction"}) {
    run.statistic(name);
  }
  run.open();
  v1::ModelStructure structure;
  if (translation) {
    v1::SymmetryGroup* group = structure.add_symmetry_group();
    group->set_kind("translation");
    group->add_parameter(0);
  } else {
    structure.add_fact()->set_fan_out(static_cast<uint64_t>(classes));
  }
  engine.on_structure(structure, 0);
  for (int step = 0; step < steps; ++step) {
    const std::vector<double> list = spectrum(step);
    run.step(step);
    run.put("hessian_eigenvalue", v1::SCOPE_INDEX, list);
    run.put("hessian_eigenvalue_error_bound", v1::SCOPE_INDEX,
            std::vector<double>(list.size(), error));
    run.put("top_subspace_fraction", 0.9);
  }
  run.finish();
  return find(engine.findings(), "hessian_outliers", "run");
}

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " " + f.gate + " / " + f.advice;
}

/// Largest eigenvalues of the Hessian of softmax regression without bias at equal probabilities:
/// H = (diag(1/C) - 1/C^2) x E[x x'], with x noise around a mean of norm 3: the first factor has
/// C-1 eigenvalues 1/C, the second one that is large.
std::vector<double> softmax_spectrum(int classes, int dimension, uint32_t seed, int largest) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  constexpr int kExamples = 400;
  Eigen::MatrixXd x(dimension, kExamples);
  for (int i = 0; i < x.size(); ++i) x.data()[i] = 0.3 * normal(generator);
  x.row(0).array() += 3;  // what all classes share
  const Eigen::MatrixXd second = x * x.transpose() / kExamples;
  const Eigen::MatrixXd output =
      Eigen::MatrixXd::Identity(classes, classes) / classes -
      Eigen::MatrixXd::Constant(classes, classes, 1.0 / classes / classes);
  Eigen::MatrixXd h(classes * dimension, classes * dimension);
  for (int a = 0; a < classes; ++a) {
    for (int b = 0; b < classes; ++b)
      h.block(a * dimension, b * dimension, dimension, dimension) = output(a, b) * second;
  }
  const Eigen::VectorXd all = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(h).eigenvalues();
  std::vector<double> top;
  for (int i = 0; i < largest; ++i) top.push_back(all[all.size() - 1 - i]);
  return top;
}

TEST(HessianOutliersTest, SoftmaxRegressionHasOneLessThanItsClasses) {
  const auto spectrum = [](int step) {
    return softmax_spectrum(5, 12, static_cast<uint32_t>(step), 12);
  };
  const Finding finding = judge_spectra(5, spectrum);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_EQ(finding.measured, 4);
  EXPECT_NE(finding.gate.find("90 %"), std::string::npos) << told(finding);
}

TEST(HessianOutliersTest, AGapElsewhereViolates) {
  const Finding finding = judge_spectra(10, [](int) {
    return std::vector<double>{9, 8, 7, 1, .95, .9, .85, .8, .75, .7, .65, .6, .55};
  });
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
  EXPECT_EQ(finding.measured, 3);
}

TEST(HessianOutliersTest, NoClearGapIsNoVerdict) {
  std::mt19937 generator(1);
  std::uniform_real_distribution<double> uniform(0.05, 1);
  const auto random = [&](int) {
    std::vector<double> list(14);
    for (double& value : list) value = uniform(generator);
    std::sort(list.rbegin(), list.rend());
    return list;
  };
  EXPECT_EQ(verdict(judge_spectra(10, random)), "UNDERPOWERED");
  const auto smooth = [](int) {
    std::vector<double> list;
    for (int i = 0; i < 14; ++i) list.push_back(std::pow(1.2, -i));
    return list;
  };
  EXPECT_EQ(verdict(judge_spectra(10, smooth)), "UNDERPOWERED");
  // A gap that the error bound may have made.
  const auto clear = [](int) { return std::vector<double>{5, 4.5, 2, 1.9, 1.8}; };
  EXPECT_EQ(verdict(judge_spectra(2, clear)), "HOLDS");
  EXPECT_EQ(verdict(judge_spectra(2, clear, 40, 0.6)), "UNDERPOWERED");
}

// A regression with 4 outputs may have 4 large eigenvalues: it has no classes.
TEST(HessianOutliersTest, OutputsOfARegressionAreNoClasses) {
  for (const int outputs : {2, 4, 10}) {
    const auto spectrum = [outputs](int) {
      std::vector<double> list(static_cast<size_t>(outputs), 5);
      for (const double bulk : {1.0, 0.95, 0.9, 0.85}) list.push_back(bulk);
      return list;
    };
    EXPECT_EQ(verdict(judge_spectra(outputs, spectrum)), "HOLDS");
    EXPECT_EQ(verdict(judge_spectra(outputs, spectrum, 40, 0, false)), "NOT_APPLICABLE");
  }
}

TEST(HessianOutliersTest, StaysSilentWithoutItsGate) {
  const auto list = [](int) { return std::vector<double>{5, 4.5, 2, 1.9, 1.8}; };
  EXPECT_EQ(verdict(judge_spectra(4, list)), "NOT_APPLICABLE");
  EXPECT_EQ(verdict(judge_spectra(1, list)), "NOT_APPLICABLE");
  EXPECT_EQ(verdict(judge_spectra(2, list, 5)), "NOT_YET");
}

const CalibrationCases kCases({
    {"hessian_outliers", "softmax regression of 5 classes", Expected::kHolds,
     [](uint32_t seed) {
       return judge_spectra(
           5,
           [seed](int step) {
             return softmax_spectrum(5, 12, seed + static_cast<uint32_t>(step), 12);
           },
           16);
     }},
    {"hessian_outliers", "the same spectrum, of a regression with 5 outputs", Expected::kSilent,
     [](uint32_t seed) {
       return judge_spectra(
           5,
           [seed](int step) {
             return softmax_spectrum(5, 12, seed + static_cast<uint32_t>(step), 12);
           },
           16, 0, false);
     }},
    {"hessian_outliers", "random spectra with a gap behind the third, 10 classes",
     Expected::kViolated,
     [](uint32_t seed) {
       std::mt19937 generator(seed);
       std::uniform_real_distribution<double> bulk(0.8, 1);
       std::uniform_real_distribution<double> outlier(2, 10);
       return judge_spectra(10, [&](int) {
         std::vector<double> list(14);
         for (size_t i = 0; i < list.size(); ++i) list[i] = (i < 3 ? outlier : bulk)(generator);
         std::sort(list.rbegin(), list.rend());
         return list;
       });
     }},
    {"hessian_outliers", "random spectra without a gap, 10 classes", Expected::kSilent,
     [](uint32_t seed) {
       std::mt19937 generator(seed);
       std::uniform_real_distribution<double> uniform(0.05, 1);
       return judge_spectra(10, [&](int) {
         std::vector<double> list(14);
         for (double& value : list) value = uniform(generator);
         std::sort(list.rbegin(), list.rend());
         return list;
       });
     }},
});

const ClosedForms kForms({
    {"hessian_outliers", "outliers of the Hessian of softmax regression, 5 classes of one mean",
     "C - 1", 4,
     [](uint32_t seed) {
       return judge_spectra(5, [seed](int step) {
         return softmax_spectrum(5, 12, seed + static_cast<uint32_t>(step), 12);
       });
     },
     0},
});

}  // namespace
}  // namespace tycho::analyzer
