// Deep linear networks trained by gradient descent on whitened inputs, whose modes are known, with
// all that the probe would record.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
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
  int layers = 2;
  double rate = 0.02;
  double momentum = 0;
  double start = 1e-3;   // initial strength of the modes; aligned and balanced
  double random = 0;     // instead: independent Gaussian entries of this size
  double last_gain = 1;  // on the last layer's initial weights
  bool mean_over_outputs = false;
  double anisotropy = 0;  // log of the spread of the inputs
  bool signs = false;     // steps along the signs of the gradient, under SGD's name
  std::string optimizer = "SGD";
  double weight_decay = 0;
  int steps = 1500;
  int every = 5;
  bool targets = true;
  uint32_t seed = 11;
};

Eigen::MatrixXd gaussian(int rows, int columns, std::mt19937* generator) {
  std::normal_distribution<double> normal;
  Eigen::MatrixXd m(rows, columns);
  for (int i = 0; i < m.size(); ++i) m.data()[i] = normal(*generator);
  return m;
}

Eigen::MatrixXd orthogonal(int rows, int columns, std::mt19937* generator) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(gaussian(rows, columns, generator));
  return qr.householderQ() * Eigen::MatrixXd::Identity(rows, columns);
}

std::vector<Finding> train(const Options& options) {
  constexpr int kIn = 6;
  constexpr int kOut = 4;
  constexpr int kHidden = 8;
  constexpr int kExamples = 40;
  std::mt19937 generator(options.seed);
  // x x' averages to 1.
  Eigen::MatrixXd x = std::sqrt(kExamples) * orthogonal(kExamples, kIn, &generator).transpose();
  if (options.anisotropy > 0) {
    Eigen::VectorXd scale(kIn);
    for (int i = 0; i < kIn; ++i) scale[i] = std::exp(options.anisotropy * (i - 2.5) / 2.5);
    const Eigen::MatrixXd turn = orthogonal(kIn, kIn, &generator);
    x = turn * scale.asDiagonal() * turn.transpose() * x;
  }
  const Eigen::Vector3d strength(3, 1, 0.3);
  const Eigen::MatrixXd u = orthogonal(kOut, 3, &generator);
  const Eigen::MatrixXd v = orthogonal(kIn, 3, &generator);
  const Eigen::MatrixXd best = u * strength.asDiagonal() * v.transpose();
  const Eigen::MatrixXd y = best * x;
  std::vector<Eigen::MatrixXd> w;
  for (int l = 0; l < options.layers; ++l) {
    const int in = l == 0 ? kIn : kHidden;
    const int out = l + 1 == options.layers ? kOut : kHidden;
    if (options.random > 0) {
      w.push_back(options.random * gaussian(out, in, &generator));
    } else {
      const double gain = std::pow(options.start, 1.0 / options.layers);
      Eigen::MatrixXd left = Eigen::MatrixXd::Identity(out, 3);
      Eigen::MatrixXd right = Eigen::MatrixXd::Identity(in, 3);
      if (l == 0) right = v;
      if (l + 1 == options.layers) left = u;
      w.push_back(gain * left * right.transpose());
    }
  }
  w.back() *= options.last_gain;

  Engine engine;
  SimulatedRun run(engine);
  for (int l = 0; l < options.layers; ++l) {
    const uint32_t layer = run.add_layer(std::to_string(l));
    run.add_parameter(layer, "weight", {w[l].rows(), w[l].cols()}, "double");
  }
  for (const char* name : {"mode_strength", "target_mode_strength", "balance_residual",
                           "probe_loss", "learning_rate", "weight_norm_sq"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(options.rate);
  group.set_momentum(options.momentum);
  group.set_weight_decay(options.weight_decay);
  run.settings(0, options.optimizer, group);

  const double scale = (options.mean_over_outputs ? 2.0 / kOut : 1.0) / kExamples;
  const auto whole = [&] {
    Eigen::MatrixXd product = w[0];
    for (int l = 1; l < options.layers; ++l) product = w[l] * product;
    return product;
  };
  std::vector<Eigen::MatrixXd> velocity;
  for (const Eigen::MatrixXd& weight : w)
    velocity.push_back(Eigen::MatrixXd::Zero(weight.rows(), weight.cols()));
  for (int step = 0; step < options.steps; ++step) {
    const Eigen::MatrixXd error = scale * (whole() * x - y) * x.transpose();
    std::vector<Eigen::MatrixXd> gradient;
    std::vector<double> norms;
    for (int l = 0; l < options.layers; ++l) {
      Eigen::MatrixXd above = Eigen::MatrixXd::Identity(kOut, kOut);
      for (int k = options.layers - 1; k > l; --k) above = above * w[k];
      Eigen::MatrixXd below = Eigen::MatrixXd::Identity(kIn, kIn);
      for (int k = 0; k < l; ++k) below = w[k] * below;
      gradient.push_back(above.transpose() * error * below.transpose());
      norms.push_back(w[l].squaredNorm());
    }
    for (int l = 0; l < options.layers; ++l) {
      velocity[l] = options.momentum * velocity[l] +
                    (options.signs ? Eigen::MatrixXd(gradient[l].array().sign()) : gradient[l]);
      w[l] -= options.rate * velocity[l];
    }
    run.step(step);
    run.put("learning_rate", options.rate);
    if (step % options.every != 0) continue;
    run.put("probe_loss", 0.5 * scale * (whole() * x - y).squaredNorm());
    run.put("weight_norm_sq", v1::SCOPE_LAYER, norms);
    const Eigen::VectorXd modes = Eigen::JacobiSVD<Eigen::MatrixXd>(whole()).singularValues();
    run.put("mode_strength", v1::SCOPE_INDEX, {modes.data(), modes.data() + modes.size()});
    if (options.targets) run.put("target_mode_strength", v1::SCOPE_INDEX, {3, 1, 0.3, 0});
    std::vector<double> residual;
    for (int l = 0; l + 1 < options.layers; ++l) {
      residual.push_back((w[l + 1].transpose() * w[l + 1] - w[l] * w[l].transpose()).norm() /
                         (w[l].squaredNorm() + w[l + 1].squaredNorm()));
    }
    run.put("balance_residual", v1::SCOPE_LAYER, residual);
  }
  run.finish();
  return engine.findings();
}

Finding modes(const Options& options) { return find(train(options), "deep_linear_modes", "run"); }
Finding balance(const Options& options) { return find(train(options), "balancedness", "run"); }

TEST(DeepLinearModesTest, AlignedModesFollowSaxe) {
  for (const int layers : {2, 3}) {
    for (const bool mean : {false, true}) {
      Options options;
      options.layers = layers;
      options.mean_over_outputs = mean;
      options.start = layers == 2 ? 1e-3 : 1e-2;
      options.rate = 0.005;
      options.steps = layers == 2 ? 6000 : 30000;
      options.every = 10;
      const Finding finding = modes(options);
      EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
      EXPECT_NEAR(finding.measured, 1, 0.05) << told(finding);
    }
  }
  // Theory T2.6: t_1/2 = ln(s/u_0 - 1)/(2 s) = 1.3343 for s = 3.
  Options options;
  options.rate = 0.001;
  options.steps = 2000;
  options.every = 1;
  const Finding first = find(train(options), "deep_linear_modes", "index:0");
  EXPECT_NE(first.gate.find("half of it at step 133"), std::string::npos) << told(first);
}

TEST(DeepLinearModesTest, RandomSmallWeightsAndMomentumToo) {
  Options options;
  options.random = 0.02;
  options.steps = 3000;
  Finding finding = modes(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  options.momentum = 0.5;
  options.rate = 0.005;
  finding = modes(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  // Before the weak mode rose it is announced.
  options.momentum = 0;
  options.rate = 0.02;
  options.steps = 300;
  finding = modes(options);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_NE(finding.advice.find("weaker modes have not risen"), std::string::npos) << told(finding);
}

TEST(DeepLinearModesTest, DoNotCryWolf) {
  int holding = 0;
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    for (const int layers : {2, 3}) {
      Options options;
      options.seed = seed;
      options.layers = layers;
      options.random = layers == 2 ? 0.02 : seed % 2 == 0 ? 0.08 : 0.15;
      options.rate = 0.01;
      options.steps = layers == 2 ? 6000 : 20000;
      const auto findings = train(options);
      const Finding finding = find(findings, "deep_linear_modes", "run");
      EXPECT_NE(verdict(finding), "VIOLATED") << layers << told(finding);
      holding += finding.verdict == Verdict::kHolds;
      EXPECT_EQ(verdict(find(findings, "balancedness", "run")), "HOLDS");
    }
  }
  EXPECT_GE(holding, 12);
}

TEST(DeepLinearModesTest, InputsThatAreNotWhitenedDoNotFollow) {
  Options options;
  options.random = 0.02;
  options.anisotropy = 1;
  options.steps = 20000;
  options.rate = 0.005;
  const Finding finding = modes(options);
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
}

TEST(DeepLinearModesTest, StaysSilentWithoutItsGate) {
  Options large;
  large.start = 0.5;
  EXPECT_EQ(verdict(modes(large)), "NOT_APPLICABLE");
  Options adam;
  adam.optimizer = "Adam";
  EXPECT_EQ(verdict(modes(adam)), "NOT_APPLICABLE");
  Options decay;
  decay.weight_decay = 0.1;
  EXPECT_EQ(verdict(modes(decay)), "NOT_APPLICABLE");
  Options steps_too_long;
  steps_too_long.rate = 0.15;
  EXPECT_EQ(verdict(modes(steps_too_long)), "NOT_APPLICABLE");
  Options without_targets;
  without_targets.targets = false;
  EXPECT_EQ(verdict(modes(without_targets)), "NOT_MEASURED");
  Options plateau;
  plateau.steps = 20;
  EXPECT_EQ(verdict(modes(plateau)), "NOT_YET");
}

TEST(BalancednessTest, ShortStepsConserveIt) {
  for (const double gain : {1.0, 10.0, 40.0}) {
    Options options;
    options.layers = 3;
    options.random = 0.1;
    options.last_gain = gain / 4;
    options.rate = 0.005;
    options.steps = 4000;
    const Finding finding = balance(options);
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  }
}

TEST(BalancednessTest, StepsThatAreNotDescentBreakIt) {
  Options options;
  options.random = 0.1;
  options.last_gain = 5;
  options.signs = true;
  const Finding finding = balance(options);
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
}

TEST(BalancednessTest, StaysSilentWithoutItsGate) {
  Options momentum;
  momentum.momentum = 0.9;
  momentum.rate = 0.002;
  EXPECT_EQ(verdict(balance(momentum)), "NOT_APPLICABLE");
  Options adam;
  adam.optimizer = "Adam";
  EXPECT_EQ(verdict(balance(adam)), "NOT_APPLICABLE");
  Options one;
  one.steps = 3;
  EXPECT_EQ(verdict(balance(one)), "NOT_YET");
}

CalibrationCase rates(const std::string& law, const std::string& setting, Expected expected,
                      const std::function<void(Options&)>& change) {
  Options options;
  options.steps = 3000;
  change(options);
  CalibrationCase result{law, setting, expected, [law, options](uint32_t seed) {
                           Options seeded = options;
                           seeded.seed = seed;
                           return find(train(seeded), law, "run");
                         }};
  result.power = 0.6;  // modes of random weights need not be balanced
  return result;
}

void small_random(Options& options) { options.random = 0.02; }

void three_layers(Options& options) {
  options.layers = 3;
  options.random = 0.1;
  options.rate = 0.01;
  options.steps = 20000;
}

const CalibrationCases kCases({
    rates("deep_linear_modes", "two layers, small random weights", Expected::kHolds, small_random),
    rates("deep_linear_modes", "the same with momentum 0.5", Expected::kHolds,
          [](Options& o) {
            small_random(o);
            o.momentum = 0.5;
            o.rate = 0.01;
          }),
    rates("deep_linear_modes", "three layers, small balanced weights", Expected::kHolds,
          [](Options& o) {
            o.layers = 3;
            o.start = 1e-2;
            o.rate = 0.01;
            o.steps = 12000;
          }),
    rates("deep_linear_modes", "inputs that are not whitened", Expected::kViolated,
          [](Options& o) {
            small_random(o);
            o.anisotropy = 1;
            o.steps = 20000;
            o.rate = 0.005;
          }),
    rates("deep_linear_modes", "initial modes of half the strength of the best map",
          Expected::kSilent, [](Options& o) { o.start = 0.5; }),
    rates("deep_linear_modes", "steps too long for the flow", Expected::kSilent,
          [](Options& o) { o.rate = 0.15; }),
    rates("balancedness", "three layers in short steps", Expected::kHolds,
          [](Options& o) {
            three_layers(o);
            o.last_gain = 2.5;
            o.rate = 0.005;
            o.steps = 4000;
          }),
    rates("balancedness", "steps along the signs of the gradient", Expected::kViolated,
          [](Options& o) {
            o.random = 0.02;
            o.last_gain = 5;
            o.signs = true;
            o.rate = 0.05;
            o.steps = 1500;
          }),
    rates("balancedness", "momentum", Expected::kSilent,
          [](Options& o) {
            o.momentum = 0.9;
            o.rate = 0.002;
          }),
});

/// Gradient-flow time at which mode `k` of two aligned layers is at half of its strength.
ClosedForm half_time(int k, double strength) {
  return {"deep_linear_modes",
          "time to half of a mode of strength " + std::to_string(strength).substr(0, 3) +
              " from 0.001, eta 0.001",
          "ln(s/u0 - 1)/(2 s)",
          std::log(strength / 1e-3 - 1) / (2 * strength),
          [k](uint32_t) {
            Options options;
            options.rate = 0.001;
            options.steps = 12000;
            options.every = 1;
            const Finding finding =
                find(train(options), "deep_linear_modes", "index:" + std::to_string(k));
            const std::string text = "half of it at step ";
            const size_t at = finding.gate.find(text);
            if (at == std::string::npos) return said(kUnknown);
            return said(options.rate * std::atof(finding.gate.c_str() + at + text.size()));
          },
          0.01};
}

const ClosedForms kForms({
    half_time(0, 3),
    half_time(1, 1),
    half_time(2, 0.3),
    {"deep_linear_modes", "speed of the modes of three layers over that of the flow",
     "du/dt = 3 u^(4/3) (s-u)", 1,
     [](uint32_t) {
       Options options;
       options.layers = 3;
       options.start = 1e-2;
       options.rate = 0.005;
       options.steps = 30000;
       options.every = 10;
       return modes(options);
     },
     0.05},
    {"balancedness", "change of |V'V - W W'|_F over |V|^2 + |W|^2 in short steps", "0", 0,
     [](uint32_t seed) {
       Options options;
       three_layers(options);
       options.seed = seed;
       options.rate = 0.001;
       options.steps = 4000;
       return balance(options);
     },
     0.01},
});

}  // namespace
}  // namespace tycho::analyzer
