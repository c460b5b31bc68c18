// Random deep networks: the slope of log gradient RMS against depth has the value that weights and
// nonlinearity predict.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

struct Options {
  int depth = 13;
  int width = 200;
  double weight_variance = 1.5;  // times width
  double bias_variance = 0.05;
  double input = 0.8;  // RMS
  bool relu = false;
  int64_t first_step = 0;
  int cut_layer = -1;      // of this layer's gradient nine tenths are lost
  bool dependent = false;  // gradients grow threefold per layer beyond what the weights do
  bool skip = false;       // a residual connection around each layer
};

std::vector<Finding> simulate(const Options& options, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  constexpr int kExamples = 64;
  const int n = options.width;
  const size_t depth = static_cast<size_t>(options.depth);
  const auto random = [&](int rows, int columns, double deviation) {
    Eigen::MatrixXd m(rows, columns);
    for (int i = 0; i < m.size(); ++i) m.data()[i] = deviation * normal(generator);
    return m;
  };
  std::vector<Eigen::MatrixXd> weight;
  std::vector<Eigen::MatrixXd> pre;
  Eigen::MatrixXd x = random(n, kExamples, options.input);
  for (size_t l = 0; l < depth; ++l) {
    weight.push_back(random(n, n, std::sqrt(options.weight_variance / n)));
    Eigen::MatrixXd h = weight.back() * x;
    const Eigen::VectorXd bias = random(n, 1, std::sqrt(options.bias_variance));
    h.colwise() += bias;
    pre.push_back(h);
    x = options.relu ? Eigen::MatrixXd(h.array().max(0)) : Eigen::MatrixXd(h.array().tanh());
  }
  std::vector<double> gradient_rms(depth);
  std::vector<double> activation_rms(depth);
  std::vector<double> weight_norm_sq(depth);
  Eigen::MatrixXd d = random(n, kExamples, 1e-3);
  for (size_t l = depth; l-- > 0;) {
    if (l + 1 < depth) {
      const Eigen::ArrayXXd slope = options.relu
                                        ? Eigen::ArrayXXd((pre[l].array() > 0).cast<double>())
                                        : Eigen::ArrayXXd(1 - pre[l].array().tanh().square());
      d = ((weight[l + 1].transpose() * d).array() * slope).matrix().eval();
      if (static_cast<int>(l) == options.cut_layer) d *= 0.1;
      if (options.dependent) d *= 3;
    }
    gradient_rms[l] = std::sqrt(d.squaredNorm() / static_cast<double>(d.size()));
    activation_rms[l] = std::sqrt(pre[l].squaredNorm() / static_cast<double>(pre[l].size()));
    weight_norm_sq[l] = weight[l].squaredNorm();
  }
  Engine engine;
  SimulatedRun run(engine);
  v1::ModelStructure structure;
  for (size_t l = 0; l < depth; ++l) {
    const uint32_t layer = run.add_layer(std::to_string(l));
    run.add_parameter(layer, "weight", {n, n});
    v1::LayerFact* fact = structure.add_fact();
    fact->set_layer(layer);
    fact->set_operator_name("aten::linear");
    fact->set_fan_in(static_cast<uint64_t>(n));
    fact->set_fan_out(static_cast<uint64_t>(n));
    fact->set_depth(layer);
    if (l == 0) continue;
    v1::LayerEdge* edge = structure.add_edge();
    edge->set_from(layer - 1);
    edge->set_to(layer);
    edge->add_via(options.relu ? "aten::relu" : "aten::tanh");
    if (!options.skip || l < 2) continue;
    edge = structure.add_edge();
    edge->set_from(layer - 2);
    edge->set_to(layer);
  }
  for (const char* name : {"activation_grad_rms", "activation_rms", "weight_norm_sq"}) {
    run.statistic(name);
  }
  run.open();
  run.step(options.first_step);
  run.put("activation_grad_rms", v1::SCOPE_LAYER, gradient_rms);
  run.put("activation_rms", v1::SCOPE_LAYER, activation_rms);
  run.put("weight_norm_sq", v1::SCOPE_PARAMETER, weight_norm_sq);
  run.step(options.first_step + 1);
  run.put("weight_norm_sq", v1::SCOPE_PARAMETER, weight_norm_sq);
  run.send();
  engine.on_structure(structure, 0);  // found after the first step
  run.finish();
  return engine.findings();
}

Finding judged(const Options& options, uint32_t seed) {
  return find(simulate(options, seed), "signal_propagation", "run");
}

TEST(SignalPropagationTest, HoldsForRandomNetworksAndSeldomCriesWolf) {
  // Fixed points of the mean-field theory: ordered, critical and chaotic tanh, He and half He ReLU.
  struct Case {
    bool relu;
    double weight_variance;
    double bias_variance;
    double chi;
  };
  const std::vector<Case> cases = {{false, 1.3, 0.3, 0.67387},
                                   {false, 1.76095, 0.05, 1},
                                   {false, 2.5, 0.05, 1.13352},
                                   {true, 2, 0, 1},
                                   {true, 1, 0, 0.5}};
  for (const Case& c : cases) {
    int violated = 0;
    int holds = 0;
    double slope = 0;
    constexpr int kSeeds = 8;
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
      Options options;
      options.relu = c.relu;
      options.weight_variance = c.weight_variance;
      options.bias_variance = c.bias_variance;
      const Finding run = judged(options, seed);
      violated += run.verdict == Verdict::kViolated;
      holds += run.verdict == Verdict::kHolds;
      slope += run.measured / kSeeds;
    }
    EXPECT_EQ(violated, 0) << c.weight_variance;
    EXPECT_GE(holds, 6) << c.weight_variance;
    EXPECT_NEAR(slope, -0.5 * std::log(c.chi), 0.05) << c.weight_variance;
  }
}

TEST(SignalPropagationTest, SingleLayersSeldomCryWolf) {
  int violated = 0;
  int judged_layers = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    for (const Finding& finding : simulate({}, seed)) {
      if (finding.law != "signal_propagation" || finding.scope == "run") continue;
      ++judged_layers;
      violated += finding.verdict == Verdict::kViolated;
    }
  }
  EXPECT_EQ(judged_layers, 240);
  EXPECT_LE(violated, 2);
}

TEST(SignalPropagationTest, VanishingGradientsAreAdvisedOn) {
  Options options;
  options.relu = true;
  options.weight_variance = 0.5;
  options.bias_variance = 0;
  const Finding finding = judged(options, 1);
  EXPECT_EQ(verdict(finding), "HOLDS");
  EXPECT_NE(finding.advice.find("scale the initial weights by"), std::string::npos)
      << finding.advice;
  EXPECT_NEAR(std::exp(finding.predicted), 2, 0.02) << "half the variance twice over";
}

TEST(SignalPropagationTest, CutLayerIsFound) {
  Options options;
  options.cut_layer = 5;
  const std::vector<Finding> findings = simulate(options, 1);
  EXPECT_EQ(verdict(find(findings, "signal_propagation", "layer:6")), "VIOLATED");
  EXPECT_EQ(verdict(find(findings, "signal_propagation", "layer:3")), "HOLDS");
  EXPECT_NE(verdict(find(findings, "signal_propagation", "run")), "HOLDS");
}

TEST(SignalPropagationTest, GradientsUnlikeTheWeightsViolate) {
  Options options;
  options.dependent = true;
  EXPECT_EQ(verdict(judged(options, 1)), "VIOLATED");
}

TEST(SignalPropagationTest, StaysSilentWithoutItsGate) {
  Options shallow;
  shallow.depth = 4;
  EXPECT_EQ(verdict(judged(shallow, 1)), "NOT_APPLICABLE");
  Options late;
  late.first_step = 10;
  EXPECT_EQ(verdict(judged(late, 1)), "NOT_MEASURED");
  Options residual;
  residual.skip = true;
  EXPECT_EQ(verdict(judged(residual, 1)), "NOT_APPLICABLE");
}

CalibrationCase rates(const std::string& setting, Expected expected, const Options& options) {
  return {"signal_propagation", setting, expected,
          [options](uint32_t seed) { return judged(options, seed); }};
}

Options relu(double weight_variance) {
  Options options;
  options.relu = true;
  options.weight_variance = weight_variance;
  options.bias_variance = 0;
  return options;
}

Options dependent() {
  Options options;
  options.dependent = true;
  return options;
}

const CalibrationCases kCases({
    rates("13 tanh layers of width 200", Expected::kHolds, {}),
    rates("13 ReLU layers of width 200, He's variance", Expected::kHolds, relu(2)),
    rates("13 ReLU layers of width 200, half of it", Expected::kHolds, relu(1)),
    rates("gradients that grow threefold per layer beyond the weights", Expected::kViolated,
          dependent()),
    rates("4 layers", Expected::kSilent, {4}),
});

ClosedForm form(const std::string& setting, double chi, const Options& options) {
  return {"signal_propagation",
          "slope of ln RMS(dL/dh) over depth, " + setting,
          "-1/2 ln chi, chi = " + std::to_string(chi).substr(0, 7),
          -0.5 * std::log(chi),
          [options](uint32_t seed) { return judged(options, seed); },
          chi == 1 ? 0.1 : 0.1 / std::fabs(0.5 * std::log(chi))};
}

/// At the fixed point `q` of the mean-field theory.
Options of_tanh(double weight_variance, double bias_variance, double q) {
  Options options;
  options.input = std::sqrt((q - bias_variance) / weight_variance);
  options.width = 400;
  options.weight_variance = weight_variance;
  options.bias_variance = bias_variance;
  return options;
}

const ClosedForms kForms({
    form("tanh, weight variance 1.3/n, bias variance 0.3", 0.67387, of_tanh(1.3, 0.3, 0.7434)),
    form("tanh, critical: 1.76095/n and 0.05", 1, of_tanh(1.76095, 0.05, 0.57)),
    form("tanh, chaotic: 2.5/n and 0.05", 1.13352, of_tanh(2.5, 0.05, 1.06396)),
    form("ReLU, He's variance", 1, relu(2)),
    form("ReLU, half of it", 0.5, relu(1)),
});

}  // namespace
}  // namespace tycho::analyzer
