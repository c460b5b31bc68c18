// Two linear layers f = u.v/sqrt(n) on one example with target 0: the map of the catapult is exact,
// and so is the largest eigenvalue of the Hessian.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

/// Loss f^2/2. With p = (u+v)/sqrt2, q = (u-v)/sqrt2 the Hessian is (p,-q)(p,-q)'/n + c diag(1,-1),
/// c = f/sqrt(n): in the plane of p and q a 2x2 matrix, outside it c and -c.
double top_eigenvalue(const Eigen::VectorXd& u, const Eigen::VectorXd& v) {
  const double n = static_cast<double>(u.size());
  const double c = u.dot(v) / n;
  const double p = (u + v).norm() / std::sqrt(2.0);
  const double q = (u - v).norm() / std::sqrt(2.0);
  Eigen::Matrix2d plane;
  plane << p * p / n + c, -p * q / n, -p * q / n, q * q / n - c;
  return std::max(std::fabs(c),
                  Eigen::SelfAdjointEigenSolver<Eigen::Matrix2d>(plane).eigenvalues()[1]);
}

struct Options {
  double eta_lambda = 2.5;  // at the start, lambda that of the kernel
  int every = 1;
  int steps = 150;
  bool quadratic = false;  // curvature that cannot fall
  bool probe = true;
  double decay_at = 1e9;  // step of a tenfold decay
};

struct Outcome {
  Finding finding;
  double final_eta_lambda = 0;
  double map_error = 0;
};

Outcome simulate(const Options& options, uint32_t seed = 1) {
  constexpr int n = 100;
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Eigen::VectorXd u(n);
  Eigen::VectorXd v(n);
  for (int i = 0; i < n; ++i) {
    u[i] = normal(generator);
    v[i] = normal(generator);
  }
  const auto kernel = [&] { return (u.squaredNorm() + v.squaredNorm()) / n; };
  double eta = options.eta_lambda / kernel();
  const double curvature = kernel();
  double x = 0.1;  // of the quadratic
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {n, 2}, "double");
  for (const char* name : {"loss", "probe_loss", "preconditioned_sharpness", "stability_threshold",
                           "preconditioned_sharpness_error_bound"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(eta);
  run.settings(0, "SGD", group);
  Outcome outcome;
  for (int step = 0; step < options.steps; ++step) {
    if (step == options.decay_at) {
      eta /= 10;
      group.set_learning_rate(eta);
      run.settings(step, "SGD", group);
    }
    const double f = u.dot(v) / std::sqrt(n);
    const double lambda = kernel();
    const double before = options.quadratic ? 0.5 * curvature * x * x : 0.5 * f * f;
    const Eigen::VectorXd du = -eta * f / std::sqrt(n) * v;
    const Eigen::VectorXd dv = -eta * f / std::sqrt(n) * u;
    u += du;
    v += dv;
    x *= 1 - eta * curvature;
    const double next = u.dot(v) / std::sqrt(n);
    if (std::isfinite(next)) {
      outcome.map_error = std::max(
          {outcome.map_error,
           std::fabs(next - f * (1 - eta * lambda + eta * eta * f * f / n)) / (1 + std::fabs(f)),
           std::fabs(kernel() - lambda - eta * f * f / n * (eta * lambda - 4)) / (1 + f * f)});
    }
    run.step(step);
    run.put("loss", before);
    if (options.probe)
      run.put("probe_loss", options.quadratic ? 0.5 * curvature * x * x : 0.5 * next * next);
    if (step % options.every != 0) continue;
    const double sharpness = options.quadratic ? curvature : top_eigenvalue(u, v);
    run.put("preconditioned_sharpness", sharpness);
    run.put("preconditioned_sharpness_error_bound", 0.001 * sharpness);
    run.put("stability_threshold", 2 / eta);
  }
  run.finish();
  outcome.finding = find(engine.findings(), "catapult", "run");
  outcome.final_eta_lambda = eta * kernel();
  return outcome;
}

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " " + f.gate + " / " + f.advice;
}

TEST(CatapultTest, TheMapIsExactAndTheCatapultReturns) {
  for (const double eta_lambda : {2.5, 3.0, 3.5}) {
    for (const int every : {1, 10}) {
      Options options;
      options.eta_lambda = eta_lambda;
      options.every = every;
      const Outcome outcome = simulate(options);
      EXPECT_LT(outcome.map_error, 1e-12);
      EXPECT_LT(outcome.final_eta_lambda, 2);
      EXPECT_EQ(verdict(outcome.finding), "HOLDS") << eta_lambda << " " << told(outcome.finding);
      EXPECT_LT(outcome.finding.measured, 1.11);
      EXPECT_NE(outcome.finding.advice.find("warm-up"), std::string::npos);
    }
  }
}

TEST(CatapultTest, BelowTheEdgeThereIsNone) {
  Options options;
  options.eta_lambda = 1.5;
  const Finding finding = simulate(options).finding;
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_NE(finding.gate.find("never above"), std::string::npos) << told(finding);
}

TEST(CatapultTest, AQuadraticDoesNotComeBack) {
  Options options;
  options.quadratic = true;
  options.eta_lambda = 2.6;
  const Finding finding = simulate(options).finding;
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
}

TEST(CatapultTest, DivergenceAsksForALowerLearningRate) {
  Options options;
  options.eta_lambda = 4.5;
  const Finding finding = simulate(options).finding;
  EXPECT_EQ(verdict(finding), "NOT_YET") << told(finding);
  EXPECT_NE(finding.advice.find("divide the learning rate"), std::string::npos) << told(finding);
  EXPECT_GT(finding.importance, 0.8);
}

TEST(CatapultTest, StaysSilentWithoutItsGate) {
  Options unknown;
  unknown.probe = false;
  EXPECT_EQ(verdict(simulate(unknown).finding), "NOT_MEASURED") << told(simulate(unknown).finding);
  Options rescued;
  rescued.quadratic = true;
  rescued.eta_lambda = 2.6;
  rescued.decay_at = 12;
  EXPECT_EQ(verdict(simulate(rescued).finding), "UNDERPOWERED") << told(simulate(rescued).finding);
}

CalibrationCase rates(const std::string& setting, Expected expected, const Options& options) {
  return {"catapult", setting, expected,
          [options](uint32_t seed) { return simulate(options, seed).finding; }};
}

const CalibrationCases kCases({
    rates("two-layer linear network at 2.5 times 1/curvature", Expected::kHolds, {}),
    rates("the same at 3.5 times, every tenth step observed", Expected::kHolds, {3.5, 10}),
    rates("a quadratic at 2.6 times, whose curvature cannot fall", Expected::kViolated,
          {2.6, 1, 150, true}),
    rates("below the edge", Expected::kSilent, {1.5}),
});

}  // namespace
}  // namespace tycho::analyzer
