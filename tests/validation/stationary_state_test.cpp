// Stationary states whose laws are known: a noisy quadratic under SGD (fluctuation-dissipation) and
// scale-invariant random walks (rotational equilibrium, stationarity of the norm).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// One parameter under an optimizer, with its per-parameter statistics recorded at each step.
class ToyTrainer {
 public:
  ToyTrainer(std::string optimizer, v1::ParameterGroup group, Vector weight, bool scale_invariant)
      : run_(engine_),
        optimizer_(std::move(optimizer)),
        group_(std::move(group)),
        weight_(std::move(weight)),
        velocity_(weight_.size(), 0.0),
        second_(weight_.size(), 0.0) {
    const uint32_t layer = run_.add_layer("0");
    run_.add_parameter(layer, "weight", {1, static_cast<int64_t>(weight_.size())}, "double");
    for (const char* name : {"weight_norm_sq", "weight_dot_grad", "weight_dot_update",
                             "update_norm_sq", "angular_update"}) {
      run_.statistic(name);
    }
    run_.open();
    v1::ModelStructure structure;
    if (scale_invariant) {
      v1::SymmetryGroup* symmetry = structure.add_symmetry_group();
      symmetry->set_kind("scale");
      symmetry->add_parameter(0);
    }
    engine_.on_structure(structure, 0);
    run_.settings(0, optimizer_, group_);
  }

  const Vector& weight() const { return weight_; }

  void set_learning_rate(double learning_rate) {
    group_.set_learning_rate(learning_rate);
    run_.settings(step_, optimizer_, group_);
  }

  /// `gradient` is what backward delivered, `used` what the optimizer was given.
  void step(const Vector& gradient, const Vector& used) {
    const Vector before = weight_;
    const double eta = group_.learning_rate();
    const double lambda = group_.weight_decay();
    for (size_t i = 0; i < weight_.size(); ++i) {
      if (optimizer_ == "SGD") {
        const double h = used[i] + lambda * weight_[i];
        velocity_[i] = group_.momentum() * velocity_[i] + (1 - group_.dampening()) * h;
        weight_[i] -= eta * velocity_[i];
        continue;
      }
      const bool decoupled = optimizer_ == "AdamW";
      const double h = used[i] + (decoupled ? 0 : lambda * weight_[i]);
      velocity_[i] = group_.beta1() * velocity_[i] + (1 - group_.beta1()) * h;
      second_[i] = group_.beta2() * second_[i] + (1 - group_.beta2()) * h * h;
      const double steps = static_cast<double>(step_ + 1);
      const double m = velocity_[i] / (1 - std::pow(group_.beta1(), steps));
      const double v = second_[i] / (1 - std::pow(group_.beta2(), steps));
      if (decoupled) weight_[i] *= 1 - eta * lambda;
      weight_[i] -= eta * m / (std::sqrt(v) + 1e-12);
    }
    Vector update(weight_.size());
    for (size_t i = 0; i < weight_.size(); ++i) update[i] = weight_[i] - before[i];
    const double norms = std::sqrt(dot(before, before) * dot(weight_, weight_));
    run_.step(step_);
    put("weight_norm_sq", dot(before, before));
    put("weight_dot_grad", dot(before, gradient));
    put("weight_dot_update", dot(before, update));
    put("update_norm_sq", dot(update, update));
    // A weight of 0 has no direction.
    put("angular_update",
        norms > 0 ? std::acos(std::min(1.0, dot(before, weight_) / norms)) : std::nan(""));
    ++step_;
  }

  std::vector<Finding> findings() {
    run_.finish();
    return engine_.findings();
  }

 private:
  void put(const char* name, double value) { run_.put(name, v1::SCOPE_PARAMETER, {value}); }

  Engine engine_;
  SimulatedRun run_;
  std::string optimizer_;
  v1::ParameterGroup group_;
  Vector weight_;
  Vector velocity_;
  Vector second_;
  int64_t step_ = 0;
};

v1::ParameterGroup sgd(double learning_rate, double weight_decay, double momentum,
                       double dampening = 0) {
  v1::ParameterGroup group;
  group.set_learning_rate(learning_rate);
  group.set_weight_decay(weight_decay);
  group.set_momentum(momentum);
  group.set_dampening(dampening);
  return group;
}

v1::ParameterGroup adam(double learning_rate, double weight_decay) {
  v1::ParameterGroup group;
  group.set_learning_rate(learning_rate);
  group.set_weight_decay(weight_decay);
  group.set_beta1(0.9);
  group.set_beta2(0.99);
  return group;
}

struct Quadratic {
  v1::ParameterGroup group = sgd(0.05, 0.01, 0.9);
  std::string optimizer = "SGD";
  int steps = 20000;
  double start = 1;
  double clip = 0;      // largest norm of what the optimizer is given; 0: none
  bool decays = false;  // learning rate / 10 in the last quarter
};

/// Minimum at 1 in each of 24 directions, three curvatures, white gradient noise.
std::vector<Finding> train_quadratic(const Quadratic& options, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  constexpr size_t kDimension = 24;
  ToyTrainer trainer(options.optimizer, options.group, Vector(kDimension, options.start), false);
  for (int step = 0; step < options.steps; ++step) {
    if (options.decays && step == options.steps * 3 / 4) {
      trainer.set_learning_rate(options.group.learning_rate() / 10);
    }
    Vector gradient(kDimension);
    for (size_t i = 0; i < kDimension; ++i) {
      const double curvature = 1 / static_cast<double>(1 + i % 3);
      gradient[i] = curvature * (trainer.weight()[i] - 1) + 3 * normal(generator);
    }
    Vector used = gradient;
    const double norm = std::sqrt(dot(gradient, gradient));
    if (options.clip > 0 && norm > options.clip) {
      for (double& value : used) value *= options.clip / norm;
    }
    trainer.step(gradient, used);
  }
  return trainer.findings();
}

TEST(FluctuationDissipationTest, HoldsAtRestAndSeldomCriesWolf) {
  constexpr int kSeeds = 20;
  const std::vector<v1::ParameterGroup> groups = {sgd(0.05, 0.01, 0.9), sgd(0.2, 0.01, 0),
                                                  sgd(0.1, 0.01, 0.5, 0.3)};
  for (const v1::ParameterGroup& group : groups) {
    int violated = 0;
    int holds = 0;
    for (uint32_t seed = 0; seed < kSeeds; ++seed) {
      Quadratic options;
      options.group = group;
      const auto findings = train_quadratic(options, seed);
      const Finding finding = find(findings, "fluctuation_dissipation", "run");
      EXPECT_NEAR(finding.measured, 1, 0.05);
      holds += finding.verdict == Verdict::kHolds;
      violated += finding.verdict == Verdict::kViolated;
    }
    EXPECT_LE(violated, 1) << group.momentum();
    EXPECT_GE(holds, 17) << group.momentum();
  }
}

TEST(FluctuationDissipationTest, SaysWhatToDoAtRest) {
  const auto findings = train_quadratic({}, 1);
  const Finding finding = find(findings, "fluctuation_dissipation", "run");
  EXPECT_EQ(verdict(finding), "HOLDS");
  EXPECT_NE(finding.advice.find("noise floor"), std::string::npos);
  EXPECT_EQ(verdict(find(findings, "fluctuation_dissipation", "param:0.weight")), "HOLDS");
}

TEST(FluctuationDissipationTest, TransientDoesNotHold) {
  Quadratic options;
  options.group = sgd(1e-5, 0.01, 0);  // relaxes in 1e5 steps
  options.steps = 10000;
  options.start = 50;
  const Finding finding = find(train_quadratic(options, 1), "fluctuation_dissipation", "run");
  EXPECT_TRUE(finding.verdict == Verdict::kNotYet || finding.verdict == Verdict::kUnderpowered)
      << verdict(finding);
}

TEST(FluctuationDissipationTest, ClippedGradientsViolateAtRest) {
  for (const double momentum : {0.0, 0.9}) {
    Quadratic options;
    options.group = sgd(momentum > 0 ? 0.05 : 0.3, 0.01, momentum);
    options.clip = 8;  // the norm is about 15
    options.steps = 60000;
    const Finding finding = find(train_quadratic(options, 1), "fluctuation_dissipation", "run");
    EXPECT_EQ(verdict(finding), "VIOLATED") << finding.gate << " " << finding.measured;
  }
}

TEST(FluctuationDissipationTest, FinalDecayDoesNotEraseTheConstantPart) {
  Quadratic options;
  options.decays = true;
  const Finding finding = find(train_quadratic(options, 1), "fluctuation_dissipation", "run");
  EXPECT_EQ(verdict(finding), "HOLDS");
  EXPECT_LT(finding.window_end, options.steps * 3 / 4);
}

TEST(FluctuationDissipationTest, StaysSilentWhereItIsNotDerived) {
  Quadratic no_decay;
  no_decay.steps = 200;
  no_decay.group = sgd(0.05, 0, 0.9);
  Quadratic nesterov;
  nesterov.steps = 200;
  nesterov.group.set_nesterov(true);
  Quadratic with_adam;
  with_adam.steps = 200;
  with_adam.optimizer = "Adam";
  with_adam.group = adam(0.01, 0.01);
  for (const Quadratic& options : {no_decay, nesterov, with_adam}) {
    EXPECT_EQ(verdict(find(train_quadratic(options, 1), "fluctuation_dissipation", "run")),
              "NOT_APPLICABLE");
  }
}

struct Rotation {
  std::string optimizer = "SGD";
  v1::ParameterGroup group = sgd(0.1, 0.01, 0);
  int steps = 6000;
  bool invariant = true;  // what the structure says
  double radial = 0;      // pull of the gradient along the weights: breaks scale invariance
};

/// Gradients z / |w|, z white and orthogonal to w.
std::vector<Finding> rotate(const Rotation& options, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  constexpr size_t kDimension = 200;
  // Start near the equilibrium norm of all the settings used below.
  ToyTrainer trainer(options.optimizer, options.group, Vector(kDimension, 0.4), options.invariant);
  for (int step = 0; step < options.steps; ++step) {
    const Vector& w = trainer.weight();
    const double norm_sq = dot(w, w);
    Vector gradient(kDimension);
    for (double& value : gradient) value = normal(generator);
    const double along = dot(gradient, w) / norm_sq;
    for (size_t i = 0; i < kDimension; ++i) {
      gradient[i] = (gradient[i] - along * w[i]) / std::sqrt(norm_sq) + options.radial * w[i];
    }
    trainer.step(gradient, gradient);
  }
  return trainer.findings();
}

TEST(RotationalEquilibriumTest, HoldsForScaleInvariantWeights) {
  struct Case {
    std::string optimizer;
    v1::ParameterGroup group;
    double predicted;
  };
  const std::vector<Case> cases = {
      {"SGD", sgd(0.1, 0.01, 0), std::sqrt(2 * 0.1 * 0.01)},
      {"SGD", sgd(0.1, 0.01, 0.9), std::sqrt(2 * 0.1 * 0.01 / 1.9)},
      {"SGD", sgd(0.1, 0.02, 0.5, 0.5), std::sqrt(2 * 0.05 * 0.02 / 1.5)},
      {"AdamW", adam(0.01, 0.2), std::sqrt(2 * 0.01 * 0.2 * 0.1 / 1.9)},
  };
  for (const Case& c : cases) {
    int violated = 0;
    int holds = 0;
    for (uint32_t seed = 0; seed < 10; ++seed) {
      Rotation options;
      options.optimizer = c.optimizer;
      options.group = c.group;
      const Finding finding =
          find(rotate(options, seed), "rotational_equilibrium", "param:0.weight");
      EXPECT_NEAR(finding.predicted, c.predicted, 1e-12);
      holds += finding.verdict == Verdict::kHolds;
      violated += finding.verdict == Verdict::kViolated;
      if (seed == 0) {
        EXPECT_NEAR(finding.measured / finding.predicted, 1, 0.04) << c.optimizer << finding.gate;
      }
    }
    EXPECT_GE(holds, 8) << c.optimizer << " momentum " << c.group.momentum();
    EXPECT_EQ(violated, 0) << c.optimizer << " momentum " << c.group.momentum();
  }
}

TEST(RotationalEquilibriumTest, WeightsThatAreNotInvariantDoNotHold) {
  Rotation options;
  options.radial = 0.02;  // twice the weight decay again
  const Finding finding = find(rotate(options, 1), "rotational_equilibrium", "param:0.weight");
  EXPECT_EQ(verdict(finding), "VIOLATED") << finding.gate;
  EXPECT_GT(finding.measured, finding.predicted);
}

TEST(RotationalEquilibriumTest, StaysSilentWithoutItsGate) {
  Rotation short_run;
  short_run.steps = 500;  // three relaxation times are 750
  const Finding early = find(rotate(short_run, 1), "rotational_equilibrium", "param:0.weight");
  EXPECT_EQ(verdict(early), "NOT_YET");
  EXPECT_NE(early.gate.find("750"), std::string::npos) << early.gate;
  Rotation coupled;
  coupled.optimizer = "Adam";
  coupled.group = adam(0.01, 0.2);
  coupled.steps = 100;
  EXPECT_EQ(verdict(find(rotate(coupled, 1), "rotational_equilibrium", "param:0.weight")),
            "NOT_APPLICABLE");
  Rotation not_found;
  not_found.invariant = false;
  not_found.steps = 100;
  EXPECT_EQ(verdict(find(rotate(not_found, 1), "rotational_equilibrium", "run")), "NOT_APPLICABLE");
}

TEST(NormStationarityTest, HoldsAtRest) {
  const Finding finding = find(rotate({}, 1), "norm_stationarity", "param:0.weight");
  EXPECT_EQ(verdict(finding), "HOLDS");
  EXPECT_NEAR(finding.measured, 1, 0.05);
}

TEST(NormStationarityTest, GrowingNormIsNotYet) {
  Rotation options;
  options.group = sgd(0.1, 1e-7, 0);
  const Finding finding = find(rotate(options, 1), "norm_stationarity", "param:0.weight");
  EXPECT_EQ(verdict(finding), "NOT_YET");
  EXPECT_NE(finding.gate.find("growing"), std::string::npos);
}

TEST(NormStationarityTest, WithoutDecayItIsNotApplicable) {
  Rotation options;
  options.group = sgd(0.1, 0, 0);
  options.steps = 100;
  EXPECT_EQ(verdict(find(rotate(options, 1), "norm_stationarity", "run")), "NOT_APPLICABLE");
}

}  // namespace
}  // namespace tycho::analyzer
