#pragma once

#include <Eigen/Dense>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {

/// A tanh network 1 -> n -> n -> 1 fitted to the fourth Chebyshev polynomial on 20 points, loss
/// half the mean square, in float64: small enough for the truth about its curvature, and known to
/// reach the edge of stability (theory T1.5).
class ToyNetwork {
 public:
  explicit ToyNetwork(int width, uint32_t seed) : n_(width), theta_(size()) {
    constexpr int kPoints = 20;
    x_.resize(1, kPoints);
    y_.resize(1, kPoints);
    for (int i = 0; i < kPoints; ++i) {
      const double x = -1 + 2.0 * i / (kPoints - 1);
      x_(0, i) = x;
      y_(0, i) = 8 * x * x * x * x - 8 * x * x + 1;
    }
    // As LibTorch initialises linear layers.
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> uniform(-1, 1);
    const double hidden = 1 / std::sqrt(static_cast<double>(n_));
    for (int i = 0; i < size(); ++i) theta_[i] = uniform(generator) * (i < 2 * n_ ? 1.0 : hidden);
  }

  int size() const { return n_ * n_ + 4 * n_ + 1; }
  /// First parameter of each of the three layers, and the end.
  std::vector<int> layers() const { return {0, 2 * n_, 2 * n_ + n_ * n_ + n_, size()}; }
  Eigen::VectorXd& theta() { return theta_; }

  double loss(const Eigen::VectorXd& theta) const { return evaluate(theta, nullptr); }
  Eigen::VectorXd gradient(const Eigen::VectorXd& theta) const {
    Eigen::VectorXd g(size());
    evaluate(theta, &g);
    return g;
  }
  /// Central difference of gradients; error about 1e-9 of |v|.
  Eigen::VectorXd hessian_times(const Eigen::VectorXd& theta, const Eigen::VectorXd& v) const {
    const double e = 1e-5 / v.norm();
    return (gradient(theta + e * v) - gradient(theta - e * v)) / (2 * e);
  }

  /// Largest eigenvalue of D H D with D = diag(scale), by Lanczos; `start` is overwritten with its
  /// eigenvector, in the coordinates of D H D.
  double sharpness(const Eigen::VectorXd& theta, const Eigen::VectorXd& scale,
                   Eigen::VectorXd* start) const {
    constexpr int kIterations = 16;
    std::vector<Eigen::VectorXd> basis = {start->normalized()};
    Eigen::MatrixXd t = Eigen::MatrixXd::Zero(kIterations, kIterations);
    for (int k = 0; k < kIterations; ++k) {
      Eigen::VectorXd w = scale.cwiseProduct(hessian_times(theta, scale.cwiseProduct(basis[k])));
      t(k, k) = w.dot(basis[k]);
      for (int pass = 0; pass < 2; ++pass) {
        for (const Eigen::VectorXd& b : basis) w -= w.dot(b) * b;
      }
      if (k + 1 == kIterations) break;
      t(k, k + 1) = t(k + 1, k) = w.norm();
      basis.push_back(w.normalized());
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(t);
    start->setZero();
    for (int k = 0; k < kIterations; ++k)
      *start += solver.eigenvectors()(k, kIterations - 1) * basis[k];
    return solver.eigenvalues()[kIterations - 1];
  }

 private:
  double evaluate(const Eigen::VectorXd& theta, Eigen::VectorXd* g) const {
    using Matrix = Eigen::Map<const Eigen::MatrixXd>;
    const double* p = theta.data();
    const Matrix w1(p, n_, 1);
    const Matrix b1(p + n_, n_, 1);
    const Matrix w2(p + 2 * n_, n_, n_);
    const Matrix b2(p + 2 * n_ + n_ * n_, n_, 1);
    const Matrix w3(p + 3 * n_ + n_ * n_, 1, n_);
    const double b3 = p[4 * n_ + n_ * n_];
    const Eigen::MatrixXd h1 = ((w1 * x_).colwise() + b1.col(0)).array().tanh();
    const Eigen::MatrixXd h2 = ((w2 * h1).colwise() + b2.col(0)).array().tanh();
    const Eigen::MatrixXd error = ((w3 * h2).array() + b3).matrix() - y_;
    const double count = static_cast<double>(x_.cols());
    if (g != nullptr) {
      using Out = Eigen::Map<Eigen::MatrixXd>;
      double* q = g->data();
      const Eigen::MatrixXd d3 = error / count;
      const Eigen::MatrixXd d2 =
          ((w3.transpose() * d3).array() * (1 - h2.array().square())).matrix();
      const Eigen::MatrixXd d1 =
          ((w2.transpose() * d2).array() * (1 - h1.array().square())).matrix();
      Out(q, n_, 1) = d1 * x_.transpose();
      Out(q + n_, n_, 1) = d1.rowwise().sum();
      Out(q + 2 * n_, n_, n_) = d2 * h1.transpose();
      Out(q + 2 * n_ + n_ * n_, n_, 1) = d2.rowwise().sum();
      Out(q + 3 * n_ + n_ * n_, 1, n_) = d3 * h2.transpose();
      q[4 * n_ + n_ * n_] = d3.sum();
    }
    return 0.5 * error.squaredNorm() / count;
  }

  int n_;
  Eigen::MatrixXd x_;
  Eigen::MatrixXd y_;
  Eigen::VectorXd theta_;
};

/// The first multiple s of `update` at which the loss is back at its start, by a fine search; NaN
/// where it is not found up to s = 100.
inline double critical_multiple(const ToyNetwork& network, const Eigen::VectorXd& theta,
                                const Eigen::VectorXd& update) {
  const double start = network.loss(theta);
  const auto rises = [&](double s) { return network.loss(theta + s * update) > start; };
  double below = 0;
  double above = 0.05;
  while (!rises(above)) {
    below = above;
    above *= 1.1;
    if (above > 100) return std::nan("");
  }
  if (below == 0) return std::nan("");
  for (int i = 0; i < 20; ++i) {
    const double middle = 0.5 * (below + above);
    (rises(middle) ? above : below) = middle;
  }
  return above;
}

struct ToyRun {
  std::string optimizer = "SGD";  // or Adam
  double learning_rate = 0.1;
  std::function<double(int)> schedule;  // factor on the learning rate; empty: 1
  double momentum = 0;
  bool nesterov = false;
  int steps = 2000;
  int every = 20;          // steps between measurements of curvature
  double told_factor = 1;  // what the settings say the learning rate is, of what it is
  double gain = 1;         // factor on the initial weights
  bool full_batch = true;  // else the loss of a step is that of other data than the probe's
  double noise_scale = 0;  // in batches of 20; 0: not recorded
  double epsilon_share = 0;
  int width = 40;
  uint32_t seed = 1;
  bool measure_curvature = true;
};

/// Trains and records what the plugin would, full batch. LibTorch's conventions: v' = b v + g.
inline std::vector<Finding> train(const ToyRun& options) {
  ToyNetwork network(options.width, options.seed);
  Eigen::VectorXd& theta = network.theta();
  theta *= options.gain;
  const int size = network.size();
  const bool adam = options.optimizer == "Adam";
  constexpr double kBeta1 = 0.9;
  constexpr double kBeta2 = 0.999;
  constexpr double kEpsilon = 1e-8;
  std::mt19937 generator(options.seed + 17);
  std::normal_distribution<double> normal;
  Engine engine;
  SimulatedRun run(engine);
  run.run().set_optimizer(options.optimizer);
  for (const char* name : {"0", "2", "4"}) {
    const uint32_t layer = run.add_layer(name);
    run.add_parameter(layer, "weight", {1, 1}, "double");
  }
  for (const char* name : {"loss",
                           "probe_loss",
                           "batch_size",
                           "learning_rate",
                           "preconditioned_sharpness",
                           "preconditioned_sharpness_error_bound",
                           "stability_threshold",
                           "preconditioned_eigenvector_share",
                           "epsilon_floor_share",
                           "grad_noise_trace",
                           "grad_signal_sq",
                           "loss_change",
                           "loss_change_first_order",
                           "loss_change_second_order",
                           "critical_sharpness",
                           "modified_flow_excess",
                           "modified_flow_predicted",
                           "modified_flow_step",
                           "modified_flow_first",
                           "implicit_regularizer"}) {
    run.statistic(name);
  }
  run.open();
  v1::ParameterGroup group;
  group.set_momentum(options.momentum);
  group.set_nesterov(options.nesterov);
  if (adam) {
    group.set_beta1(kBeta1);
    group.set_beta2(kBeta2);
    group.set_epsilon(kEpsilon);
  }
  Eigen::VectorXd velocity = Eigen::VectorXd::Zero(size);
  Eigen::VectorXd second = Eigen::VectorXd::Zero(size);
  Eigen::VectorXd start(size);
  for (int i = 0; i < size; ++i) start[i] = normal(generator);
  double told_before = -1;
  for (int step = 0; step < options.steps; ++step) {
    const double eta = options.learning_rate * (options.schedule ? options.schedule(step) : 1.0);
    const double told = eta * options.told_factor;
    if (told != told_before) {
      group.set_learning_rate(told);
      run.settings(step, options.optimizer, group);
      told_before = told;
    }
    const double before = network.loss(theta);
    const Eigen::VectorXd g = network.gradient(theta);
    Eigen::VectorXd update;
    Eigen::VectorXd scale = Eigen::VectorXd::Ones(size);  // P^-1/2
    double threshold = 2 / told;
    if (adam) {
      velocity = kBeta1 * velocity + (1 - kBeta1) * g;
      second = kBeta2 * second + (1 - kBeta2) * g.cwiseProduct(g);
      const double correction1 = 1 - std::pow(kBeta1, step + 1);
      const double correction2 = 1 - std::pow(kBeta2, step + 1);
      const Eigen::ArrayXd root = (second.array() / correction2).sqrt() + kEpsilon;
      update = (-eta / correction1 * velocity.array() / root).matrix();
      scale = (correction1 * root).rsqrt().matrix();
      threshold = (2 + 2 * kBeta1) / ((1 - kBeta1) * told);
    } else {
      const double b = options.momentum;
      velocity = b * velocity + g;
      update = -eta * (options.nesterov ? Eigen::VectorXd(g + b * velocity) : velocity);
      threshold *= options.nesterov ? (1 + b) / (1 + 2 * b) : 1 + b;
    }
    const Eigen::VectorXd half_product =
        step % options.every == 0 ? Eigen::VectorXd(0.5 * network.hessian_times(theta, update))
                                  : Eigen::VectorXd();
    theta += update;
    const double after = network.loss(theta);
    run.step(step);
    run.put("loss", options.full_batch ? before : before * (1 + 0.1 * normal(generator)));
    run.put("probe_loss", after);
    run.put("batch_size", 20);
    run.put("learning_rate", told);
    if (options.noise_scale > 0) {
      run.put("grad_noise_trace", 20 * options.noise_scale);
      run.put("grad_signal_sq", 1);
    }
    if (step % options.every != 0 || !options.measure_curvature) continue;
    run.put("loss_change", after - before);
    run.put("loss_change_first_order", g.dot(update));
    run.put("loss_change_second_order", half_product.dot(update));
    const double critical = critical_multiple(network, theta - update, update);
    if (std::isfinite(critical)) run.put("critical_sharpness", 2 / (critical * told));
    // On what the settings say, whether the step was that or not.
    const Eigen::VectorXd g_after = network.gradient(theta);
    const double curvature = g.dot(network.hessian_times(theta - update, g)) +
                             g_after.dot(network.hessian_times(theta, g_after));
    const double squares = g.squaredNorm() + g_after.squaredNorm();
    run.put("modified_flow_excess", after - before + told * squares / 2);
    run.put("modified_flow_predicted", -told * told / 4 * curvature);
    run.put("modified_flow_step", told * curvature / squares);
    run.put("modified_flow_first", told * squares / 2);
    run.put("implicit_regularizer", told / 4 * g_after.squaredNorm());
    std::vector<double> first;
    std::vector<double> second_order;
    std::vector<double> share;
    const double value = network.sharpness(theta, scale, &start);
    for (size_t l = 0; l + 1 < network.layers().size(); ++l) {
      const int begin = network.layers()[l];
      const int length = network.layers()[l + 1] - begin;
      first.push_back(g.segment(begin, length).dot(update.segment(begin, length)));
      second_order.push_back(
          half_product.segment(begin, length).dot(update.segment(begin, length)));
      share.push_back(start.segment(begin, length).squaredNorm() / start.squaredNorm());
    }
    run.put("loss_change_first_order", v1::SCOPE_LAYER, first);
    run.put("loss_change_second_order", v1::SCOPE_LAYER, second_order);
    run.put("preconditioned_sharpness", value);
    run.put("preconditioned_sharpness_error_bound", 0.005 * std::fabs(value));
    run.put("stability_threshold", threshold);
    run.put("preconditioned_eigenvector_share", v1::SCOPE_LAYER, share);
    if (adam) {
      run.put("epsilon_floor_share", v1::SCOPE_PARAMETER,
              std::vector<double>(3, options.epsilon_share));
    }
  }
  run.finish();
  return engine.findings();
}

}  // namespace tycho::analyzer
