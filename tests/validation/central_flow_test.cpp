// Gradient descent at the edge of stability, with all derivatives: the two-parameter loss in which
// the oscillation is a two-cycle in closed form, and a tanh network that sharpens to its edge.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "toy_network.h"

namespace tycho::analyzer {
namespace {

struct Landscape {
  std::function<double(const Eigen::VectorXd&)> loss;
  std::function<Eigen::VectorXd(const Eigen::VectorXd&)> gradient;
};

/// L = y x^2/2 - c y + k y^2/2: y is the sharpness, and flows up until x oscillates. The two-cycle
/// is x = +-sqrt(2 (c - 2k/eta)), y = 2/eta.
constexpr double kC = 0.005;
constexpr double kK = 1e-4;
constexpr double kEta = 0.1;

Landscape valley(double c = kC, double k = kK) {
  Landscape valley;
  valley.loss = [=](const Eigen::VectorXd& w) {
    return w[1] * w[0] * w[0] / 2 - c * w[1] + k * w[1] * w[1] / 2;
  };
  valley.gradient = [=](const Eigen::VectorXd& w) {
    return Eigen::Vector2d(w[0] * w[1], w[0] * w[0] / 2 - c + k * w[1]);
  };
  return valley;
}

/// Two valleys that share their sharpness: both modes become critical together.
Landscape twin_valley() {
  Landscape valley;
  valley.loss = [](const Eigen::VectorXd& w) {
    return w[1] * (w[0] * w[0] + w[2] * w[2]) / 2 - kC * w[1] + kK * w[1] * w[1] / 2;
  };
  valley.gradient = [](const Eigen::VectorXd& w) {
    return Eigen::Vector3d(w[0] * w[1], (w[0] * w[0] + w[2] * w[2]) / 2 - kC + kK * w[1],
                           w[2] * w[1]);
  };
  return valley;
}

struct Observation {
  double variance = 0;
  double predicted = 0;
  double excess = 0;
  double sharpness = 0;
  double second = 0;
};

/// The probe's formulas with a dense Hessian and differences of gradients.
Observation observe(const Landscape& landscape, const Eigen::VectorXd& before,
                    const Eigen::VectorXd& after) {
  const Eigen::VectorXd middle = 0.5 * (before + after);
  const auto size = middle.size();
  Eigen::MatrixXd hessian(size, size);
  constexpr double kDifference = 1e-5;
  for (Eigen::Index i = 0; i < size; ++i) {
    const Eigen::VectorXd e = kDifference * Eigen::VectorXd::Unit(size, i);
    hessian.col(i) =
        (landscape.gradient(middle + e) - landscape.gradient(middle - e)) / (2 * kDifference);
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(
      (0.5 * (hessian + hessian.transpose())).eval());
  const Eigen::VectorXd u = solver.eigenvectors().col(size - 1);
  Observation o;
  o.sharpness = solver.eigenvalues()[size - 1];
  o.second = solver.eigenvalues()[size - 2];
  o.variance = std::pow(u.dot(after - before), 2) / 4;
  Eigen::VectorXd gradient = landscape.gradient(middle);
  constexpr double kSecond = 1e-3;
  Eigen::VectorXd rise = (landscape.gradient(middle + kSecond * u) +
                          landscape.gradient(middle - kSecond * u) - 2 * gradient) /
                         (kSecond * kSecond);
  gradient -= gradient.dot(u) * u;
  rise -= rise.dot(u) * u;
  o.predicted = 2 * -gradient.dot(rise) / rise.squaredNorm();
  o.excess = 0.5 * (landscape.loss(before) + landscape.loss(after)) - landscape.loss(middle);
  return o;
}

struct Descent {
  Landscape landscape = valley();
  Eigen::VectorXd start = Eigen::Vector2d(0.082, 20);
  double eta = kEta;
  double momentum = 0;
  std::string optimizer = "SGD";
  int steps = 40000;
  int every = 4;
  bool full_batch = true;
  uint32_t seed = 3;
  /// Added to the parameters after each step: what the settings do not say.
  std::function<Eigen::VectorXd(int)> force;
};

std::vector<Finding> descend(const Descent& options) {
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {1, options.start.size()}, "double");
  for (const char* name :
       {"loss", "probe_loss", "learning_rate", "stability_threshold", "central_flow_variance",
        "central_flow_variance_predicted", "central_flow_loss_excess", "central_flow_sharpness",
        "central_flow_second_eigenvalue"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(options.eta);
  group.set_momentum(options.momentum);
  run.settings(0, options.optimizer, group);
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  Eigen::VectorXd w = options.start;
  Eigen::VectorXd velocity = Eigen::VectorXd::Zero(w.size());
  for (int step = 0; step < options.steps; ++step) {
    const Eigen::VectorXd before = w;
    const double loss = options.landscape.loss(before);
    velocity = options.momentum * velocity + options.landscape.gradient(before);
    w -= options.eta * velocity;
    if (options.force) w += options.force(step);
    run.step(step);
    run.put("loss", options.full_batch ? loss : loss * (1 + 0.1 * normal(generator)));
    run.put("probe_loss", options.landscape.loss(w));
    run.put("learning_rate", options.eta);
    run.put("stability_threshold", (2 + 2 * options.momentum) / options.eta);
    if (step % options.every != 0) continue;
    const Observation o = observe(options.landscape, before, w);
    run.put("central_flow_variance", o.variance);
    run.put("central_flow_variance_predicted", o.predicted);
    run.put("central_flow_loss_excess", o.excess);
    run.put("central_flow_sharpness", o.sharpness);
    run.put("central_flow_second_eigenvalue", o.second);
  }
  run.finish();
  return engine.findings();
}

std::string told(const Finding& f) {
  return f.law + " " + verdict(f) + " " + std::to_string(f.measured) + " [" +
         std::to_string(f.ci_low) + ", " + std::to_string(f.ci_high) + "] " + f.gate + " / " +
         f.advice;
}

TEST(CentralFlowTest, TheValleysOscillationHasItsVarianceAndItsLoss) {
  const auto findings = descend({});
  for (const char* law : {"central_flow", "central_flow_loss"}) {
    const Finding finding = find(findings, law, "run");
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
    EXPECT_NEAR(finding.measured, 1, 0.03) << told(finding);
  }
  // The closed form: sigma^2 = 2 (c - k y), within the drift of y around 2/eta.
  EXPECT_NEAR(find(findings, "central_flow", "run").evidence_level, 2 * (kC - kK * 2 / kEta), 3e-5);
}

TEST(CentralFlowTest, MomentumDoesNotEnter) {
  // Inertia drives the slow cycles of amplitude and sharpness, which a larger k damps.
  Descent options;
  options.landscape = valley(0.092, 3e-3);
  options.momentum = 0.5;
  // From rest the oscillation grows to 3 times where it starts, (1 + beta)/(1 - beta).
  options.start = Eigen::Vector2d(0.02, 30);
  const auto findings = descend(options);
  for (const char* law : {"central_flow", "central_flow_loss"}) {
    const Finding finding = find(findings, law, "run");
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  }
  EXPECT_NEAR(find(findings, "central_flow", "run").evidence_level, 2 * (0.092 - 3e-3 * 30), 3e-5);
}

TEST(CentralFlowTest, NetworksThatSharpenedToTheirEdgeFollowIt) {
  const auto train = [](int width, uint32_t seed, double eta) {
    ToyNetwork network(width, seed);
    Descent options;
    options.landscape.loss = [&](const Eigen::VectorXd& w) { return network.loss(w); };
    options.landscape.gradient = [&](const Eigen::VectorXd& w) { return network.gradient(w); };
    options.start = network.theta();
    options.eta = eta;
    options.every = 80;
    return descend(options);
  };
  for (const auto& findings : {train(6, 3, 0.2), train(6, 2, 0.6)}) {
    for (const char* law : {"central_flow", "central_flow_loss"}) {
      const Finding finding = find(findings, law, "run");
      EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
      EXPECT_NEAR(finding.measured, 1, 0.02) << told(finding);
    }
  }
  // Two modes at the edge: their covariance would be needed.
  const auto findings = train(6, 3, 0.4);
  EXPECT_EQ(verdict(find(findings, "central_flow", "run")), "NOT_APPLICABLE");
}

TEST(CentralFlowTest, AForceThatTheLossDoesNotKnowViolates) {
  Descent options;
  // Pushes the sharpness up as the loss of another, unknown term would: sigma^2 doubles.
  options.force = [](int) { return Eigen::Vector2d(0, kEta * (kC - kK * 20)); };
  options.start = Eigen::Vector2d(0.115, 20);
  const auto findings = descend(options);
  for (const char* law : {"central_flow", "central_flow_loss"}) {
    const Finding finding = find(findings, law, "run");
    EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
    EXPECT_NEAR(finding.measured, 2, 0.1) << told(finding);
  }
}

TEST(CentralFlowTest, AnOscillationDrivenFromOutsideIsNotItsOwn) {
  Descent options;
  // Twice the amplitude of the two-cycle, whatever the curvature: the sharpness falls.
  options.force = [](int step) { return Eigen::Vector2d(step % 2 == 0 ? 0.05 : -0.05, 0); };
  const auto findings = descend(options);
  for (const char* law : {"central_flow", "central_flow_loss"}) {
    const Finding finding = find(findings, law, "run");
    EXPECT_NE(verdict(finding), "HOLDS") << told(finding);
  }
}

TEST(CentralFlowTest, StaysSilentWithoutItsGate) {
  const auto verdicts = [](const Descent& options) {
    const auto findings = descend(options);
    return verdict(find(findings, "central_flow", "run")) + " " +
           verdict(find(findings, "central_flow_loss", "run"));
  };
  Descent below;
  below.start = Eigen::Vector2d(0.01, 10);
  below.steps = 1000;
  EXPECT_EQ(verdicts(below), "NOT_APPLICABLE NOT_APPLICABLE");
  Descent approaching = below;
  approaching.start = Eigen::Vector2d(0.0001, 17);
  EXPECT_EQ(verdicts(approaching), "NOT_YET NOT_YET");
  Descent adaptive;
  adaptive.optimizer = "Adam";
  EXPECT_EQ(verdicts(adaptive), "NOT_APPLICABLE NOT_APPLICABLE");
  Descent noisy;
  noisy.full_batch = false;
  EXPECT_EQ(verdicts(noisy), "NOT_MEASURED NOT_MEASURED");
  Descent twins;
  twins.landscape = twin_valley();
  twins.start = Eigen::Vector3d(0.05, 19.9, 0.05);
  EXPECT_EQ(verdicts(twins), "NOT_APPLICABLE NOT_APPLICABLE");
  Descent few;
  few.steps = 40;
  EXPECT_EQ(verdicts(few), "NOT_YET NOT_YET");
}

/// A valley near its two-cycle, with constants of its own.
Descent near_the_cycle(uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const double c = kC * std::exp(0.2 * normal(generator));
  Descent options;
  options.seed = seed;
  options.landscape = valley(c);
  const double amplitude = std::sqrt(2 * (c - kK * 2 / kEta));
  options.start =
      Eigen::Vector2d(amplitude * (1 + 0.05 * normal(generator)), 20 + 0.01 * normal(generator));
  options.steps = 40000;
  options.every = 8;
  return options;
}

std::vector<CalibrationCase> rates(const std::string& setting, Expected expected,
                                   const std::function<Descent(uint32_t)>& make) {
  std::vector<CalibrationCase> result;
  for (const char* law : {"central_flow", "central_flow_loss"}) {
    result.push_back({law, setting, expected, [law, make](uint32_t seed) {
                        return find(descend(make(seed)), law, "run");
                      }});
    result.back().power = 0.6;
  }
  return result;
}

const CalibrationCases kValleys(rates("valley whose oscillation is a two-cycle", Expected::kHolds,
                                      near_the_cycle));
const CalibrationCases kMomentum(
    rates("another valley, with momentum 0.5", Expected::kHolds, [](uint32_t seed) {
      Descent options = near_the_cycle(seed);
      std::mt19937 generator(seed);
      std::normal_distribution<double> normal;
      options.landscape = valley(0.092 + 0.0005 * normal(generator), 3e-3);
      options.momentum = 0.5;
      options.start = Eigen::Vector2d(0.02 * (1 + 0.1 * normal(generator)), 30);
      options.steps = 40000;
      return options;
    }));
const CalibrationCases kForced(rates("a force that the loss does not know", Expected::kViolated,
                                     [](uint32_t seed) {
                                       Descent options = near_the_cycle(seed);
                                       options.landscape = valley();
                                       options.force = [](int) {
                                         return Eigen::Vector2d(0, kEta * (kC - kK * 20));
                                       };
                                       options.start[0] *= 0.115 / std::fabs(options.start[0]);
                                       options.steps = 20000;
                                       return options;
                                     }));
const CalibrationCases kTwins(rates("two modes at the edge", Expected::kSilent, [](uint32_t seed) {
  Descent options = near_the_cycle(seed);
  options.landscape = twin_valley();
  options.start = Eigen::Vector3d(options.start[0] / 2, 19.9, 0.05);
  options.steps = 4000;
  return options;
}));
const CalibrationCases kBelow(rates("below the edge", Expected::kSilent, [](uint32_t seed) {
  Descent options = near_the_cycle(seed);
  options.start[1] = 10;
  options.steps = 1000;
  return options;
}));
const CalibrationCases kSmallBatches(rates("small batches", Expected::kSilent, [](uint32_t seed) {
  Descent options = near_the_cycle(seed);
  options.full_batch = false;
  options.steps = 4000;
  return options;
}));

const ClosedForms kForms({
    {"central_flow",
     "mean square of the oscillation in L = y x^2/2 - c y + k y^2/2, eta 0.1, "
     "c 0.005, k 1e-4",
     "2 (c - 2 k/eta)", 2 * (kC - 2 * kK / kEta),
     [](uint32_t) {
       const Finding finding = find(descend({}), "central_flow", "run");
       return said(finding.evidence_level);
     },
     0.01},
    {"central_flow", "the same, over what gradients predict", "1", 1,
     [](uint32_t) { return find(descend({}), "central_flow", "run"); }, 0.03},
    {"central_flow_loss", "loss of the oscillation over the predicted one", "1", 1,
     [](uint32_t) { return find(descend({}), "central_flow_loss", "run"); }, 0.03},
});

}  // namespace
}  // namespace tycho::analyzer
