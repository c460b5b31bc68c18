// A wide network of one hidden layer whose output is scaled by alpha (Chizat et al. 2019): lazy for
// large alpha, rich for small. Kernel and linearization are exact.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " " + f.gate + " / " + f.advice;
}

struct Options {
  double alpha = 1;
  bool linear = false;  // the model itself: no nonlinearity and a fixed second layer
  int steps = 2000;
  double rate = 0.2;  // over alpha^2
  bool measured = true;
  int first_measured = 0;  // step: the reference
  bool features = true;    // their change is recorded too
  uint32_t seed = 5;
};

/// f = alpha (g(theta) - g(theta_0)), g = a.tanh(W x)/sqrt(n).
Finding train(const Options& options) {
  constexpr int kWidth = 200;
  constexpr int kIn = 3;
  constexpr int kExamples = 16;
  constexpr int kSize = kWidth * (kIn + 1);
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  Eigen::MatrixXd x(kIn, kExamples);
  for (int i = 0; i < x.size(); ++i) x.data()[i] = normal(generator);
  Eigen::VectorXd y(kExamples);
  for (int i = 0; i < kExamples; ++i) y[i] = std::sin(2 * x(0, i)) + 0.5 * x(1, i);
  Eigen::VectorXd theta(kSize);
  for (int i = 0; i < kSize; ++i) theta[i] = normal(generator);
  Eigen::MatrixXd jacobian(kExamples, kSize);
  const auto evaluate = [&](const Eigen::VectorXd& at) {
    const Eigen::Map<const Eigen::MatrixXd> w(at.data(), kWidth, kIn);
    const Eigen::VectorXd a =
        options.linear ? Eigen::VectorXd(Eigen::VectorXd::Ones(kWidth)) : at.tail(kWidth);
    const double scale = options.alpha / std::sqrt(kWidth);
    Eigen::VectorXd f(kExamples);
    for (int i = 0; i < kExamples; ++i) {
      Eigen::ArrayXd h = (w * x.col(i)).array();
      Eigen::ArrayXd slope = Eigen::ArrayXd::Ones(kWidth);
      if (!options.linear) {
        h = h.tanh().eval();
        slope = 1 - h.square();
      }
      f[i] = scale * a.dot(h.matrix());
      const Eigen::MatrixXd d = scale * (a.array() * slope).matrix() * x.col(i).transpose();
      jacobian.row(i).head(kWidth * kIn) = Eigen::Map<const Eigen::RowVectorXd>(d.data(), d.size());
      jacobian.row(i).tail(kWidth) = options.linear
                                         ? Eigen::RowVectorXd(Eigen::RowVectorXd::Zero(kWidth))
                                         : Eigen::RowVectorXd(scale * h.matrix().transpose());
    }
    return f;
  };
  const Eigen::VectorXd offset = evaluate(theta);
  Eigen::VectorXd theta_0;
  Eigen::VectorXd f_0;
  Eigen::MatrixXd jacobian_0;
  Eigen::MatrixXd kernel_0;

  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {kWidth, kIn});
  run.add_parameter(run.add_layer("2"), "weight", {1, kWidth});
  for (const char* name :
       {"kernel_distance", "linearization_residual", "feature_change_relative", "probe_loss"}) {
    run.statistic(name);
  }
  run.open();
  int next = options.first_measured;
  for (int step = 0; step < options.steps; ++step) {
    const Eigen::VectorXd error = evaluate(theta) - offset - y;
    if (step > 0) {
      theta -= options.rate / (options.alpha * options.alpha) / kExamples *
               (jacobian.transpose() * error);
    }
    const Eigen::VectorXd f = evaluate(theta) - offset;
    run.step(step);
    run.put("probe_loss", 0.5 * (f - y).squaredNorm() / kExamples);
    if (step != next || !options.measured) continue;
    next = std::max(next + 1, next * 3 / 2);
    const Eigen::MatrixXd kernel = jacobian * jacobian.transpose();
    if (step == options.first_measured) {
      theta_0 = theta;
      f_0 = f;
      jacobian_0 = jacobian;
      kernel_0 = kernel;
    }
    run.put("kernel_distance",
            1 - kernel.cwiseProduct(kernel_0).sum() / (kernel.norm() * kernel_0.norm()));
    const double change = (theta.head(kWidth * kIn) - theta_0.head(kWidth * kIn)).norm() /
                          theta_0.head(kWidth * kIn).norm();
    if (options.features) run.put("feature_change_relative", v1::SCOPE_LAYER, {change, f.norm()});
    if (step == options.first_measured) continue;
    run.put("linearization_residual",
            (f - f_0 - jacobian_0 * (theta - theta_0)).norm() / (f - f_0).norm());
  }
  run.finish();
  return find(engine.findings(), "learning_regime", "run");
}

TEST(LearningRegimeTest, ALargeOutputScaleIsLazy) {
  Options options;
  options.alpha = 30;
  const Finding finding = train(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_LT(finding.measured, 0.05);
  EXPECT_EQ(finding.gate.rfind("lazy", 0), 0u) << told(finding);
}

TEST(LearningRegimeTest, ASmallOneIsRich) {
  Options options;
  options.alpha = 0.1;
  const Finding finding = train(options);
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << told(finding);
  EXPECT_GT(finding.measured, 0.1);
  EXPECT_EQ(finding.gate.rfind("rich", 0), 0u) << told(finding);
  EXPECT_NE(finding.gate.find("features change most in layer:"), std::string::npos);
}

// Near any late reference a network is its own linearization, however rich its training was.
TEST(LearningRegimeTest, AReferenceThatCameLateIsNoStart) {
  int lazy = 0;
  int silent = 0;
  for (const double alpha : {0.1, 0.3, 1.0}) {
    for (const int first : {300, 1000, 1800}) {
      Options options;
      options.alpha = alpha;
      options.first_measured = first;
      const Finding finding = train(options);
      lazy += finding.verdict == Verdict::kHolds;
      silent += finding.verdict != Verdict::kHolds && finding.verdict != Verdict::kViolated;
    }
  }
  EXPECT_EQ(lazy, 0);
  EXPECT_EQ(silent, 9);
  Options options;
  options.alpha = 30;
  options.first_measured = 2;
  EXPECT_EQ(verdict(train(options)), "HOLDS") << "soon enough";
}

// Kernel and features are of two probes, and a schedule may ask for one of them.
TEST(LearningRegimeTest, ItNeedsNoFeatures) {
  Options options;
  options.alpha = 0.1;
  options.features = false;
  const Finding finding = train(options);
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << told(finding);
  EXPECT_EQ(finding.gate.rfind("rich", 0), 0u) << told(finding);
  EXPECT_EQ(finding.gate.find("features change most"), std::string::npos) << told(finding);
}

TEST(LearningRegimeTest, ALinearModelIsExactlyItsLinearization) {
  Options options;
  options.linear = true;
  options.alpha = 0.1;
  const Finding finding = train(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_NEAR(finding.measured, 0, 1e-6);
}

TEST(LearningRegimeTest, StaysSilentWhileNothingIsLearned) {
  Options options;
  options.rate = 1e-6;
  Finding finding = train(options);
  EXPECT_EQ(verdict(finding), "NOT_YET") << told(finding);
  options.rate = 0.2;
  options.steps = 1;
  finding = train(options);
  EXPECT_EQ(verdict(finding), "NOT_YET") << told(finding);
  options.measured = false;
  finding = train(options);
  EXPECT_EQ(verdict(finding), "NOT_MEASURED") << told(finding);
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(Options&)>& change) {
  Options options;
  change(options);
  CalibrationCase result{"learning_regime", setting, expected, [options](uint32_t seed) {
                           Options seeded = options;
                           seeded.seed = seed;
                           return train(seeded);
                         }};
  result.runs = 100;
  result.power = 0.7;  // in others the loss has not fallen by a tenth
  return result;
}

const CalibrationCases kCases({
    rates("output scaled by 30", Expected::kHolds, [](Options& o) { o.alpha = 30; }),
    rates("a model that is linear in its parameters", Expected::kHolds,
          [](Options& o) { o.linear = true; }),
    rates("output scaled by 0.1", Expected::kSilent, [](Options& o) { o.alpha = 0.1; }),
    rates("the same, first observed when it is nearly trained", Expected::kSilent,
          [](Options& o) {
            o.alpha = 0.1;
            o.first_measured = 1000;
          }),
});

const ClosedForms kForms({
    {"learning_regime", "linearization residual of a model that is linear in its parameters", "0",
     0,
     [](uint32_t seed) {
       Options options;
       options.linear = true;
       options.seed = seed;
       return train(options);
     },
     1e-6},
});

}  // namespace
}  // namespace tycho::analyzer
