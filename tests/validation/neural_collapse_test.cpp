// A ReLU network that classifies clusters, trained on after all examples are right: collapse is
// known to set in with weight decay.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " " + f.gate + " / " + f.advice;
}

struct Options {
  int steps = 20000;
  double decay = 2e-3;
  bool tells_decay = true;  // else the optimizer says that it has none
  bool frozen = false;      // features are not trained
  double scatter = 0;       // random walk of the features' weights, once all examples are right
  double separation = 1.5;
  uint32_t seed = 4;
};

Finding train(const Options& options) {
  constexpr int kClasses = 4;
  constexpr int kEach = 10;
  constexpr int kExamples = kClasses * kEach;
  constexpr int kIn = 10;
  constexpr int kFeatures = 32;
  constexpr double kRate = 0.1;
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  const auto gaussian = [&](int rows, int columns) {
    Eigen::MatrixXd m(rows, columns);
    for (int i = 0; i < m.size(); ++i) m.data()[i] = normal(generator);
    return m;
  };
  const Eigen::MatrixXd centers = options.separation * gaussian(kIn, kClasses);
  Eigen::MatrixXd x = gaussian(kIn, kExamples);
  Eigen::MatrixXd target = Eigen::MatrixXd::Zero(kClasses, kExamples);
  for (int i = 0; i < kExamples; ++i) {
    x.col(i) += centers.col(i % kClasses);
    target(i % kClasses, i) = 1;
  }
  Eigen::MatrixXd w1 = gaussian(kFeatures, kIn) / std::sqrt(kIn);
  Eigen::MatrixXd w2 = gaussian(kClasses, kFeatures) / std::sqrt(kFeatures);
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {kFeatures, kIn});
  run.add_parameter(run.add_layer("2"), "weight", {kClasses, kFeatures});
  for (const char* name :
       {"probe_error", "class_variability", "class_mean_norm_variation",
        "class_mean_angle_deviation", "self_duality", "nearest_center_mismatch"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(kRate);
  if (options.tells_decay) group.set_weight_decay(options.decay);
  run.settings(0, "SGD", group);
  for (int step = 0; step < options.steps; ++step) {
    const Eigen::MatrixXd h = (w1 * x).cwiseMax(0);
    const Eigen::MatrixXd logits = w2 * h;
    Eigen::MatrixXd p(kClasses, kExamples);
    int wrong = 0;
    std::vector<int> decision(kExamples);
    for (int i = 0; i < kExamples; ++i) {
      const Eigen::ArrayXd e = (logits.col(i).array() - logits.col(i).maxCoeff()).exp();
      p.col(i) = (e / e.sum()).matrix();
      logits.col(i).maxCoeff(&decision[static_cast<size_t>(i)]);
      wrong += decision[static_cast<size_t>(i)] != i % kClasses;
    }
    const Eigen::MatrixXd d = (p - target) / kExamples;
    const Eigen::MatrixXd d1 =
        ((w2.transpose() * d).array() * (h.array() > 0).cast<double>()).matrix() * x.transpose();
    Eigen::MatrixXd mean = Eigen::MatrixXd::Zero(kFeatures, kClasses);
    for (int i = 0; i < kExamples; ++i) mean.col(i % kClasses) += h.col(i) / kEach;
    Eigen::MatrixXd spread(kFeatures, kExamples);
    for (int i = 0; i < kExamples; ++i) spread.col(i) = h.col(i) - mean.col(i % kClasses);
    spread = (spread.array() * (h.array() > 0).cast<double>()).matrix() / kExamples;
    w2 -= kRate * (d * h.transpose() + options.decay * w2);
    if (!options.frozen) w1 -= kRate * (d1 + options.decay * w1);
    if (wrong == 0) w1 += options.scatter * step / options.steps * kRate * spread * x.transpose();
    run.step(step);
    if (step % 50 != 0) continue;
    Eigen::MatrixXd within = Eigen::MatrixXd::Zero(kFeatures, kFeatures);
    int mismatch = 0;
    for (int i = 0; i < kExamples; ++i) {
      const Eigen::VectorXd off = h.col(i) - mean.col(i % kClasses);
      within += off * off.transpose() / kExamples;
      int nearest = 0;
      (mean.colwise() - h.col(i)).colwise().squaredNorm().minCoeff(&nearest);
      mismatch += nearest != decision[static_cast<size_t>(i)];
    }
    const Eigen::MatrixXd m = mean.colwise() - mean.rowwise().mean();
    const Eigen::MatrixXd between = m * m.transpose() / kClasses;
    const Eigen::MatrixXd inverse = between.completeOrthogonalDecomposition().pseudoInverse();
    const Eigen::ArrayXd norms = m.colwise().norm();
    double angles = 0;
    for (int a = 0; a < kClasses; ++a) {
      for (int b = 0; b < kClasses; ++b) {
        if (a == b) continue;
        angles += std::fabs(m.col(a).dot(m.col(b)) / (norms[a] * norms[b]) + 1.0 / (kClasses - 1)) /
                  (kClasses * (kClasses - 1));
      }
    }
    run.put("probe_error", static_cast<double>(wrong) / kExamples);
    run.put("class_variability", (within * inverse).trace() / kClasses);
    run.put("class_mean_norm_variation",
            std::sqrt((norms - norms.mean()).square().mean()) / norms.mean());
    run.put("class_mean_angle_deviation", angles);
    run.put("self_duality", (w2 / w2.norm() - m.transpose() / m.norm()).squaredNorm());
    run.put("nearest_center_mismatch", static_cast<double>(mismatch) / kExamples);
  }
  run.finish();
  return find(engine.findings(), "neural_collapse", "run");
}

TEST(NeuralCollapseTest, SetsInPastZeroErrorUnderWeightDecay) {
  const Finding finding = train({});
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_LT(finding.measured, 0.7) << told(finding);
}

TEST(NeuralCollapseTest, FrozenFeaturesDoNotCollapse) {
  Options options;
  options.frozen = true;
  const Finding finding = train(options);
  EXPECT_EQ(verdict(finding), "UNDERPOWERED") << told(finding);
  EXPECT_NEAR(finding.measured, 1, 0.01) << told(finding);
}

TEST(NeuralCollapseTest, FeaturesThatAreHeldApartViolate) {
  Options options;
  options.scatter = 0.01;
  const Finding finding = train(options);
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
}

TEST(NeuralCollapseTest, WithoutWeightDecayNothingIsViolated) {
  Options options;
  options.scatter = 0.01;
  options.tells_decay = false;
  const Finding finding = train(options);
  EXPECT_GT(finding.measured, 1.25) << told(finding);
  EXPECT_EQ(verdict(finding), "UNDERPOWERED") << told(finding);
}

TEST(NeuralCollapseTest, StaysSilentBeforeTheTerminalPhase) {
  Options hard;
  hard.separation = 0;
  hard.frozen = true;
  hard.steps = 2000;
  Finding finding = train(hard);
  EXPECT_EQ(verdict(finding), "NOT_YET") << told(finding);
  Options few;
  few.steps = 400;
  finding = train(few);
  EXPECT_EQ(verdict(finding), "NOT_YET") << told(finding);
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(Options&)>& change) {
  Options options;
  change(options);
  CalibrationCase result{"neural_collapse", setting, expected, [options](uint32_t seed) {
                           Options seeded = options;
                           seeded.seed = seed;
                           return train(seeded);
                         }};
  result.power = 0.5;
  result.runs = options.steps > 5000 ? 40 : 200;
  return result;
}

const CalibrationCases kCases({
    rates("ReLU network past zero error under weight decay", Expected::kHolds, [](Options&) {}),
    rates("features that are pushed apart within their class", Expected::kViolated,
          [](Options& o) { o.scatter = 0.004; }),
    rates("features that are not trained", Expected::kSilent, [](Options& o) { o.frozen = true; }),
    rates("clusters that cannot be told apart by a fixed layer", Expected::kSilent,
          [](Options& o) {
            o.separation = 0;
            o.frozen = true;
            o.steps = 2000;
          }),
});

}  // namespace
}  // namespace tycho::analyzer
