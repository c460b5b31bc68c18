#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "simulated_run.h"

// Stationary states whose laws are known: a noisy quadratic under SGD, and scale-invariant random
// walks.
namespace tycho::analyzer {

using Vector = std::vector<double>;

inline double dot(const Vector& a, const Vector& b) {
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

inline v1::ParameterGroup sgd(double learning_rate, double weight_decay, double momentum,
                              double dampening = 0) {
  v1::ParameterGroup group;
  group.set_learning_rate(learning_rate);
  group.set_weight_decay(weight_decay);
  group.set_momentum(momentum);
  group.set_dampening(dampening);
  return group;
}

inline v1::ParameterGroup adam(double learning_rate, double weight_decay) {
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
inline std::vector<Finding> train_quadratic(const Quadratic& options, uint64_t seed) {
  std::mt19937_64 generator(seed);
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

/// A scale-invariant weight of 200 entries.
struct Rotation {
  std::string optimizer = "SGD";
  v1::ParameterGroup group = sgd(0.1, 0.01, 0);
  int steps = 6000;
  bool invariant = true;  // what the structure says
  double radial = 0;      // pull of the gradient along the weights: breaks scale invariance
};

/// Gradients z / |w|, z white and orthogonal to w.
inline std::vector<Finding> rotate(const Rotation& options, uint64_t seed) {
  std::mt19937_64 generator(seed);
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

}  // namespace tycho::analyzer
