// A tanh network under weight decay, trained until it is stationary: features at convergence are
// exact there. And what is only described of the same run and of a matrix that learns two
// directions.
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

std::string told(const Finding& f) {
  return f.scope + " " + verdict(f) + " " + std::to_string(f.measured) + " [" +
         std::to_string(f.ci_low) + ", " + std::to_string(f.ci_high) + "] " + f.gate + " / " +
         f.advice;
}

struct Options {
  double rate = 0.03;
  double decay = 0.02;
  double told_factor = 1;  // what the settings say the decay is, of what it is
  bool decoupled = false;
  std::string optimizer = "SGD";
  int steps = 40000;
  bool measured = true;
  uint32_t seed = 3;
};

double cosine(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) {
  return a.cwiseProduct(b).sum() / (a.norm() * b.norm());
}

/// 4 -> 8 -> 8 -> 2, without biases; loss half the mean square over 30 examples.
std::vector<Finding> train(const Options& options) {
  constexpr int kExamples = 30;
  const std::vector<int> width = {4, 8, 8, 2};
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  const auto gaussian = [&](int rows, int columns) {
    Eigen::MatrixXd m(rows, columns);
    for (int i = 0; i < m.size(); ++i) m.data()[i] = normal(generator);
    return m;
  };
  const Eigen::MatrixXd x = gaussian(4, kExamples);
  Eigen::MatrixXd y(2, kExamples);
  y.row(0) = 2 * (x.row(0).array() * x.row(1).array()).tanh();
  y.row(1) = 2 * (x.row(2) - x.row(0)).array().tanh();
  std::vector<Eigen::MatrixXd> w;
  Engine engine;
  SimulatedRun run(engine);
  for (int l = 0; l < 3; ++l) {
    w.push_back(gaussian(width[l + 1], width[l]) / std::sqrt(width[l]));
    run.add_parameter(run.add_layer(std::to_string(2 * l)), "weight", {width[l + 1], width[l]},
                      "double");
  }
  for (const char* name :
       {"fact_residual", "fact_alignment", "fact_asymmetry", "feature_ansatz_alignment"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_learning_rate(options.rate);
  group.set_weight_decay(options.decay * options.told_factor);
  group.set_decoupled_weight_decay(options.decoupled);
  run.settings(0, options.optimizer, group);
  for (int step = 0; step < options.steps; ++step) {
    std::vector<Eigen::MatrixXd> h = {x};
    for (int l = 0; l < 2; ++l) h.push_back((w[l] * h[l]).array().tanh());
    Eigen::MatrixXd d = w[2] * h[2] - y;  // of the example's own loss
    // Jacobians of the two outputs by the layer's input, over examples: backward of unit vectors.
    std::vector<Eigen::MatrixXd> back = {Eigen::MatrixXd::Zero(2, kExamples),
                                         Eigen::MatrixXd::Zero(2, kExamples)};
    for (int o = 0; o < 2; ++o) back[o].row(o).setOnes();
    const bool record = step % 50 == 0 && options.measured;
    std::vector<double> residual(3), alignment(3), asymmetry(3), ansatz(3);
    std::vector<Eigen::MatrixXd> gradient(3);
    for (int l = 2; l >= 0; --l) {
      gradient[l] = d * h[l].transpose() / kExamples;
      const Eigen::MatrixXd by_input = w[l].transpose() * d;
      std::vector<Eigen::MatrixXd> jacobian;
      for (const Eigen::MatrixXd& b : back) jacobian.push_back(w[l].transpose() * b);
      if (record) {
        const Eigen::MatrixXd gram = w[l].transpose() * w[l];
        const double told = std::max(options.decay * options.told_factor, 1e-6);
        const Eigen::MatrixXd f = -1 / told / kExamples * (by_input * h[l].transpose());
        Eigen::MatrixXd outer = Eigen::MatrixXd::Zero(width[l], width[l]);
        for (const Eigen::MatrixXd& j : jacobian) outer += j * j.transpose() / kExamples;
        residual[l] = (gram - f).norm() / gram.norm();
        alignment[l] = cosine(gram, 0.5 * (f + f.transpose()));
        asymmetry[l] = (f - f.transpose()).norm() / f.norm();
        ansatz[l] = cosine(gram, outer);
      }
      if (l == 0) break;
      const Eigen::ArrayXXd slope = 1 - h[l].array().square();
      d = (by_input.array() * slope).matrix();
      for (size_t o = 0; o < back.size(); ++o) back[o] = (jacobian[o].array() * slope).matrix();
    }
    for (int l = 0; l < 3; ++l) w[l] -= options.rate * (gradient[l] + options.decay * w[l]);
    run.step(step);
    if (!record) continue;
    run.put("fact_residual", v1::SCOPE_LAYER, residual);
    run.put("fact_alignment", v1::SCOPE_LAYER, alignment);
    run.put("fact_asymmetry", v1::SCOPE_LAYER, asymmetry);
    run.put("feature_ansatz_alignment", v1::SCOPE_LAYER, ansatz);
  }
  run.finish();
  return engine.findings();
}

TEST(FeaturesAtConvergenceTest, AStationaryNetworkHasThem) {
  const auto findings = train({});
  for (const char* layer : {"layer:0", "layer:2", "layer:4"}) {
    const Finding finding = find(findings, "features_at_convergence", layer);
    EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
    EXPECT_LT(finding.measured, 0.05) << told(finding);
  }
}

TEST(FeaturesAtConvergenceTest, ADecayThatTheSettingsDoNotSayViolates) {
  Options options;
  options.told_factor = 0.5;
  const auto findings = train(options);
  for (const char* layer : {"layer:0", "layer:2", "layer:4"}) {
    const Finding finding = find(findings, "features_at_convergence", layer);
    EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
    EXPECT_NEAR(finding.measured, 1, 0.05) << told(finding);
  }
}

TEST(FeaturesAtConvergenceTest, StaysSilentBeforeConvergenceAndWithoutDecay) {
  const auto verdicts = [](const Options& options) {
    return verdict(find(train(options), "features_at_convergence", "layer:2"));
  };
  Options early;
  early.steps = 1500;
  EXPECT_EQ(verdicts(early), "NOT_YET");
  Options none;
  none.told_factor = 0;
  none.steps = 1500;
  EXPECT_EQ(verdicts(none), "NOT_APPLICABLE");
  Options decoupled;
  decoupled.optimizer = "AdamW";
  decoupled.decoupled = true;
  decoupled.steps = 1500;
  EXPECT_EQ(verdicts(decoupled), "NOT_APPLICABLE");
  Options nothing;
  nothing.measured = false;
  nothing.steps = 10;
  EXPECT_EQ(verdict(find(train(nothing), "features_at_convergence", "run")), "NOT_MEASURED");
  EXPECT_EQ(verdict(find(train(nothing), "neural_feature_ansatz", "run")), "NOT_MEASURED");
}

TEST(NeuralFeatureAnsatzTest, SaysHowItMovedAndGivesNoVerdict) {
  const Finding finding = find(train({}), "neural_feature_ansatz", "layer:2");
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_GT(finding.measured, 0.8) << told(finding);
  EXPECT_NE(finding.gate.find("no derived threshold"), std::string::npos);
  EXPECT_NE(finding.gate.find(", up from"), std::string::npos) << told(finding);
  Options early;
  early.steps = 200;
  EXPECT_EQ(verdict(find(train(early), "neural_feature_ansatz", "layer:2")), "NOT_YET");
}

TEST(WeightSpectrumTest, DirectionsThatAreLearnedLeaveTheBulk) {
  constexpr int kRows = 60;
  constexpr int kColumns = 100;
  std::mt19937 generator(9);
  std::normal_distribution<double> normal;
  const auto gaussian = [&](int rows, int columns) {
    Eigen::MatrixXd m(rows, columns);
    for (int i = 0; i < m.size(); ++i) m.data()[i] = normal(generator);
    return m;
  };
  const Eigen::MatrixXd learned = 0.1 * gaussian(kRows, 2) * gaussian(2, kColumns);
  const double sigma = 0.1;
  Eigen::MatrixXd w = sigma * gaussian(kRows, kColumns);
  const Eigen::MatrixXd goal = w + learned;
  const double edge = sigma * (std::sqrt(kRows) + std::sqrt(kColumns));
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {kRows, kColumns});
  for (const char* name : {"spectrum_spikes", "effective_rank"}) run.statistic(name);
  run.open();
  for (int step = 0; step < 50; ++step) {
    const Eigen::ArrayXd s = Eigen::JacobiSVD<Eigen::MatrixXd>(w).singularValues();
    const Eigen::ArrayXd p = s.square() / s.square().sum();
    run.step(step);
    run.put("spectrum_spikes", v1::SCOPE_LAYER, {(s > 1.05 * edge).cast<double>().sum()});
    run.put("effective_rank", v1::SCOPE_LAYER, {std::exp(-(p * p.log()).sum())});
    w -= 0.1 * (w - goal);
  }
  run.finish();
  const auto findings = engine.findings();
  const Finding finding = find(findings, "weight_spectrum", "layer:0");
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_EQ(finding.measured, 2);
  EXPECT_NE(finding.gate.find("beyond the edge: 2 (at first 0)"), std::string::npos)
      << told(finding);
}

Finding of_hidden_layer(const Options& options, uint32_t seed) {
  Options seeded = options;
  seeded.seed = seed;
  return find(train(seeded), "features_at_convergence", "layer:2");
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(Options&)>& change) {
  Options options;
  change(options);
  CalibrationCase result{"features_at_convergence", setting, expected,
                         [options](uint32_t seed) { return of_hidden_layer(options, seed); }};
  result.power = 0.6;  // some have not come to rest by then
  if (options.steps > 5000) result.runs = 40;
  return result;
}

const CalibrationCases kCases({
    rates("tanh network under weight decay, trained to rest", Expected::kHolds, [](Options&) {}),
    rates("weight decay twice what the settings say", Expected::kViolated,
          [](Options& o) { o.told_factor = 0.5; }),
    rates("the same network at 1500 steps of 40 000", Expected::kSilent,
          [](Options& o) { o.steps = 1500; }),
    rates("without weight decay", Expected::kSilent,
          [](Options& o) {
            o.told_factor = 0;
            o.decay = 0;
            o.steps = 4000;
          }),
});

const ClosedForms kForms({
    {"features_at_convergence", "|W'W - F|/|W'W|, F = -(1/lambda) E[(dl/dh) h'], at rest",
     "0 at a stationary point", 0, [](uint32_t) { return of_hidden_layer({}, 3); }, 0.05},
    {"features_at_convergence", "the same with half of the weight decay in F", "1", 1,
     [](uint32_t) {
       Options options;
       options.told_factor = 0.5;
       return of_hidden_layer(options, 3);
     },
     0.05},
});

}  // namespace
}  // namespace tycho::analyzer
