// A ReLU network with one hidden layer, trained on noise in float64: rescaling a hidden unit leaves
// the loss unchanged, so its gradient identity and its discrete balance hold to rounding.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <random>

#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

struct Options {
  double offset = 0;  // added to the activation: not homogeneous any more
  double clip = 0;    // largest gradient norm given to the optimizer; 0: none
  double momentum = 0;
  bool observed = true;
};

std::vector<Finding> train(const Options& options) {
  constexpr int kInputs = 5;
  constexpr int kHidden = 7;
  constexpr int kOutputs = 3;
  constexpr int kBatch = 8;
  constexpr int kSteps = 200;
  constexpr double kRate = 0.1;
  constexpr double kDecay = 1e-3;
  std::mt19937 generator(1);
  std::normal_distribution<double> normal;
  const auto random = [&](int rows, int columns) {
    Eigen::MatrixXd m(rows, columns);
    for (int i = 0; i < m.size(); ++i) m.data()[i] = 0.5 * normal(generator);
    return m;
  };
  Eigen::MatrixXd in = random(kHidden, kInputs);
  Eigen::MatrixXd out = random(kOutputs, kHidden);
  Eigen::MatrixXd velocity_in = Eigen::MatrixXd::Zero(kHidden, kInputs);
  Eigen::MatrixXd velocity_out = Eigen::MatrixXd::Zero(kOutputs, kHidden);

  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {kHidden, kInputs}, "double");
  run.add_parameter(run.add_layer("2"), "weight", {kOutputs, kHidden}, "double");
  run.statistic("symmetry_residual");
  run.statistic("conservation_error");
  run.open();
  v1::ModelStructure structure;
  v1::SymmetryGroup* group = structure.add_symmetry_group();
  group->set_kind("rescale");
  group->set_label("0.weight -> 2.weight");
  group->add_parameter(0);
  group->add_parameter(1);
  engine.on_structure(structure, 0);
  v1::ParameterGroup settings;
  settings.set_learning_rate(kRate);
  settings.set_weight_decay(kDecay);
  settings.set_momentum(options.momentum);
  run.settings(0, "SGD", settings);

  for (int step = 0; step < kSteps; ++step) {
    const Eigen::MatrixXd x = random(kInputs, kBatch);
    const Eigen::MatrixXd y = random(kOutputs, kBatch);
    const Eigen::MatrixXd h = in * x;
    const Eigen::MatrixXd active = (h.array() > 0).cast<double>();
    const Eigen::MatrixXd a = h.array().max(0) + options.offset;
    const Eigen::MatrixXd error = (out * a - y) / kBatch;
    const Eigen::MatrixXd gradient_out = error * a.transpose();
    const Eigen::MatrixXd gradient_in =
        ((out.transpose() * error).array() * active.array()).matrix() * x.transpose();
    const Eigen::VectorXd left = (in.array() * gradient_in.array()).rowwise().sum();
    const Eigen::VectorXd right = (out.array() * gradient_out.array()).colwise().sum().transpose();
    const double residual = (left - right).norm() / (left.norm() + right.norm());
    const double norm = std::sqrt(gradient_in.squaredNorm() + gradient_out.squaredNorm());
    const double scale = options.clip > 0 ? std::min(1.0, options.clip / norm) : 1;
    const auto balance = [&]() -> Eigen::VectorXd {
      return out.colwise().squaredNorm().transpose() - in.rowwise().squaredNorm();
    };
    const Eigen::VectorXd before = balance();
    velocity_in = options.momentum * velocity_in + scale * gradient_in + kDecay * in;
    velocity_out = options.momentum * velocity_out + scale * gradient_out + kDecay * out;
    in -= kRate * velocity_in;
    out -= kRate * velocity_out;
    const double keep = (1 - kRate * kDecay) * (1 - kRate * kDecay);
    const Eigen::VectorXd gradients =
        kRate * kRate *
        (gradient_out.colwise().squaredNorm().transpose() - gradient_in.rowwise().squaredNorm());
    // Relative to what the gradients contribute: the balance itself would hide an error.
    const double balance_error = (balance() - keep * before - gradients).norm() / gradients.norm();
    run.step(step);
    if (!options.observed) continue;
    run.put("symmetry_residual", v1::SCOPE_PARAMETER, {residual, residual});
    run.put("conservation_error", v1::SCOPE_PARAMETER, {balance_error, balance_error});
  }
  run.finish();
  return engine.findings();
}

TEST(SymmetryTest, HoldsForReluUnits) {
  const auto findings = train({});
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "HOLDS");
  const Finding finding = find(findings, "symmetry", "param:2.weight");
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured;
  EXPECT_NE(finding.gate.find("0.weight -> 2.weight"), std::string::npos);
}

TEST(SymmetryTest, ActivationThatIsNotHomogeneousViolates) {
  Options options;
  options.offset = 0.1;
  const auto findings = train(options);
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "VIOLATED");
  EXPECT_EQ(verdict(find(findings, "symmetry", "param:0.weight")), "VIOLATED");
}

TEST(SymmetryTest, NothingObservedIsNotApplicable) {
  Options options;
  options.observed = false;
  EXPECT_EQ(verdict(find(train(options), "symmetry", "run")), "NOT_APPLICABLE");
}

TEST(ConservationTest, HoldsForSgd) {
  const Finding finding = find(train({}), "conservation", "param:0.weight");
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured;
}

TEST(ConservationTest, ClippedGradientsViolate) {
  Options options;
  options.clip = 0.1;
  const auto findings = train(options);
  EXPECT_EQ(verdict(find(findings, "conservation", "param:0.weight")), "VIOLATED");
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "HOLDS")
      << "the gradients themselves are as they should be";
}

TEST(ConservationTest, MomentumIsNotApplicable) {
  Options options;
  options.momentum = 0.9;
  const Finding finding = find(train(options), "conservation", "run");
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_NE(finding.gate.find("momentum"), std::string::npos);
}

}  // namespace
}  // namespace tycho::analyzer
