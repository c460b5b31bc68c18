#include "src/schedule/fit_loss_law.h"

#include <Eigen/Cholesky>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <unsupported/Eigen/NonLinearOptimization>

namespace tycho::analyzer {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr double kPriorWidth = 1.4;            // a factor of 4
constexpr double kPublished[] = {0.59, 0.64};  // b and g of the multi-power law, of three sizes,
constexpr double kPublishedWidth = 0.1;        // that hardly differ
constexpr double kFloorPriorWidth = 3;         // of L0 below the smallest loss
constexpr double kSmallestShare = 1e-3;        // of the smallest loss, for a start
constexpr double kSmallestValue =
    1e-3;  // of the smallest loss: what stands for a law's values below 0
constexpr double kWorst = 1e150;
constexpr size_t kRefined = 4;  // starts

/// Usual shapes in the units of LossLaw, for starts and priors; by parameter from the third on.
std::vector<std::vector<double>> shapes_of(LossForm form) {
  switch (form) {
    case LossForm::kPower:
      return {{0.15, 0.5, 1.5}};
    case LossForm::kAnnealing:
      return {{0.2, 0.6}, {}, {0.003, 0.03, 0.3}};
    case LossForm::kMultiPower:
      return {{0.3, 0.6}, {}, {30, 300, 3000}, {0.4, 0.8}, {0.64}};
  }
  return {};
}

/// Residuals of all curves and of the priors, and their derivatives, as Eigen's solver asks.
class Problem {
 public:
  using Scalar = double;
  using InputType = VectorXd;
  using ValueType = VectorXd;
  using JacobianType = MatrixXd;
  enum { InputsAtCompileTime = Eigen::Dynamic, ValuesAtCompileTime = Eigen::Dynamic };

  Problem(const LossLaw& law, const std::vector<LossCurve>& curves, const LossFitOptions& options)
      : law_(law), curves_(curves), options_(options) {
    smallest_ = std::numeric_limits<double>::infinity();
    for (const LossCurve& curve : curves_) {
      for (const LossCurvePoint& point : curve) {
        if (std::isnan(point.loss)) continue;
        ++points_;
        smallest_ = std::min(smallest_, point.loss);
      }
    }
    const auto shapes = shapes_of(law.form);
    centre_ = VectorXd::Zero(law.parameters());
    width_ = VectorXd::Zero(law.parameters());
    centre_[0] = std::log(0.7 * smallest_);
    width_[0] = kFloorPriorWidth;
    for (size_t j = 0; j < shapes.size(); ++j) {
      if (shapes[j].empty()) continue;
      const auto at = static_cast<Index>(j) + 2;
      centre_[at] = std::log(shapes[j].front() * shapes[j].back()) / 2;
      width_[at] = std::max(kPriorWidth, std::log(shapes[j].back() / shapes[j].front()) / 2);
    }
    if (law.form == LossForm::kMultiPower) {
      for (Index j = 0; j < 2; ++j) {
        centre_[5 + j] = std::log(kPublished[j]);
        width_[5 + j] = kPublishedWidth;
      }
    }
    priors_ = (width_.array() > 0).count();
  }

  int inputs() const { return static_cast<int>(law_.parameters()); }
  int values() const { return static_cast<int>(points_ + priors_); }
  Index points() const { return points_; }
  double smallest() const { return smallest_; }

  int operator()(const VectorXd& x, VectorXd& result) const {
    fill(x, &result, nullptr);
    for (Index i = 0; i < points_; ++i) result[i] = robust(result[i]);
    return 0;
  }

  int df(const VectorXd& x, MatrixXd& derivative) const {
    VectorXd value(values());
    fill(x, &value, &derivative);
    for (Index i = 0; i < points_; ++i) {
      if (std::fabs(value[i]) > options_.huber)
        derivative.row(i) *= options_.huber / std::fabs(robust(value[i]));
    }
    return 0;
  }

  double cost(const VectorXd& x) const {
    VectorXd value(values());
    (*this)(x, value);
    return value.squaredNorm();
  }

  /// Residuals over their errors, without Huber's bound, the priors' behind.
  void fill(const VectorXd& x, VectorXd* value, MatrixXd* derivative) const {
    const VectorXd bounded = x.array().max(-50).min(50);
    Index row = 0;
    VectorXd loss;
    MatrixXd by;
    for (const LossCurve& curve : curves_) {
      law_.evaluate(curve, bounded, &loss, derivative == nullptr ? nullptr : &by);
      for (size_t i = 0; i < curve.size(); ++i) {
        if (std::isnan(curve[i].loss)) continue;
        const auto at = static_cast<Index>(i);
        const double least = kSmallestValue * smallest_;
        const bool valid = loss[at] > least;
        const double error = std::max(options_.least_error, curve[i].error);
        const double residual = std::log((valid ? loss[at] : least) / curve[i].loss) / error;
        (*value)[row] = std::isfinite(residual) ? residual : kWorst;
        if (derivative != nullptr) {
          derivative->row(row) = by.row(at) / (std::max(loss[at], least) * error);
          if (!valid || !derivative->row(row).allFinite()) derivative->row(row).setZero();
        }
        ++row;
      }
    }
    for (Index j = 0; j < law_.parameters(); ++j) {
      if (!(width_[j] > 0)) continue;
      (*value)[row] = (x[j] - centre_[j]) / width_[j];
      if (derivative != nullptr) {
        derivative->row(row).setZero();
        (*derivative)(row, j) = 1 / width_[j];
      }
      ++row;
    }
  }

  /// Shapes as given; the linear parameters solve the least squares of relative residuals.
  VectorXd start(const VectorXd& shape) const {
    const std::vector<Index> linear =
        law_.form == LossForm::kPower ? std::vector<Index>{0, 1} : std::vector<Index>{0, 1, 3};
    VectorXd x = shape;
    for (const Index j : linear) x[j] = 0;
    MatrixXd basis(points_, static_cast<Index>(linear.size()));
    VectorXd loss(points_);
    Index row = 0;
    VectorXd value;
    MatrixXd by;
    for (const LossCurve& curve : curves_) {
      law_.evaluate(curve, x, &value, &by);
      for (size_t i = 0; i < curve.size(); ++i) {
        if (std::isnan(curve[i].loss)) continue;
        for (size_t j = 0; j < linear.size(); ++j) {
          basis(row, static_cast<Index>(j)) = by(static_cast<Index>(i), linear[j]) / curve[i].loss;
        }
        ++row;
      }
    }
    const VectorXd solution = basis.colPivHouseholderQr().solve(VectorXd::Constant(points_, 1.0));
    for (size_t j = 0; j < linear.size(); ++j) {
      const double least = kSmallestShare * smallest_;
      const double found = solution[static_cast<Index>(j)];
      x[linear[j]] = std::log(std::isfinite(found) ? std::max(found, least) : least);
    }
    return x;
  }

 private:
  /// Its square is twice Huber's loss.
  double robust(double residual) const {
    const double size = std::fabs(residual);
    if (size <= options_.huber) return residual;
    return std::copysign(std::sqrt(options_.huber * (2 * size - options_.huber)), residual);
  }

  const LossLaw& law_;
  const std::vector<LossCurve>& curves_;
  LossFitOptions options_;
  Index points_ = 0;
  Index priors_ = 0;
  double smallest_ = 0;
  VectorXd centre_;
  VectorXd width_;  // 0: no prior
};

/// All combinations of the usual shapes.
std::vector<VectorXd> starts(const Problem& problem, const LossLaw& law) {
  std::vector<VectorXd> result = {VectorXd::Zero(law.parameters())};
  const auto shapes = shapes_of(law.form);
  for (size_t j = 0; j < shapes.size(); ++j) {
    if (shapes[j].empty()) continue;
    std::vector<VectorXd> more;
    for (const VectorXd& before : result) {
      for (const double shape : shapes[j]) {
        more.push_back(before);
        more.back()[static_cast<Index>(j) + 2] = std::log(shape);
      }
    }
    result = std::move(more);
  }
  for (VectorXd& x : result) x = problem.start(x);
  return result;
}

bool usable(const std::vector<LossCurve>& curves, LossLaw* law, Index* points) {
  *points = 0;
  law->length = law->peak = law->steps = 0;
  for (const LossCurve& curve : curves) {
    for (const LossCurvePoint& point : curve) {
      if (!(point.sum >= 0) || !(point.rate >= 0) || !std::isfinite(point.sum + point.rate))
        return false;
      law->length = std::max(law->length, point.sum);
      law->peak = std::max(law->peak, point.rate);
      law->steps = std::max(law->steps, point.step);
      if (std::isnan(point.loss)) continue;
      if (!(point.loss > 0) || !std::isfinite(point.loss) || !(point.sum > 0)) return false;
      ++*points;
    }
  }
  return law->peak > 0 && law->steps > 0 && *points >= 2 * law->parameters();
}

}  // namespace

LossForecast LossFit::forecast(const LossCurve& curve) const {
  LossForecast result;
  VectorXd value;
  law.evaluate(curve, parameters, &value, &result.derivative);
  result.log_loss = value.array().max(std::numeric_limits<double>::min()).log();
  for (Index i = 0; i < value.size(); ++i) result.derivative.row(i) /= value[i];
  return result;
}

std::optional<LossFit> fit_loss_law(LossForm form, const std::vector<LossCurve>& curves,
                                    const LossFitOptions& options) {
  LossFit fit;
  fit.law.form = form;
  Index points = 0;
  if (!usable(curves, &fit.law, &points)) return std::nullopt;
  Problem problem(fit.law, curves, options);
  std::vector<VectorXd> candidates = starts(problem, fit.law);
  std::vector<std::pair<double, size_t>> order;
  for (size_t i = 0; i < candidates.size(); ++i) order.emplace_back(problem.cost(candidates[i]), i);
  std::sort(order.begin(), order.end());
  if (order.size() > kRefined) order.resize(kRefined);
  double best = std::numeric_limits<double>::infinity();
  for (const auto& [cost, index] : order) {
    VectorXd x = candidates[index];
    Eigen::LevenbergMarquardt<Problem> solver(problem);
    solver.parameters.maxfev = 200;
    solver.minimize(x);
    const double reached = problem.cost(x);
    if (!(reached < best) || !x.allFinite()) continue;
    best = reached;
    fit.parameters = x;
  }
  if (!(best < kWorst)) return std::nullopt;

  VectorXd value(problem.values());
  MatrixXd derivative(problem.values(), problem.inputs());
  problem.fill(fit.parameters, &value, &derivative);
  // Of an M-estimator: E psi^2 / (E psi')^2 (X'X)^-1 (Huber 1981).
  double square = 0;
  double within = 0;
  for (Index i = 0; i < points; ++i) {
    const double size = std::min(std::fabs(value[i]), options.huber);
    square += size * size;
    within += std::fabs(value[i]) <= options.huber ? 1 : 0;
  }
  fit.degrees_of_freedom = static_cast<double>(points - problem.inputs());
  const double share = std::max(within / static_cast<double>(points), 0.05);
  const double variance = square / fit.degrees_of_freedom / (share * share);
  fit.scatter = std::sqrt(variance);
  const double counts = std::max(variance, 1e-12);
  MatrixXd information =
      derivative.topRows(points).transpose() * derivative.topRows(points) / counts;
  const Index priors = problem.values() - points;
  information += derivative.bottomRows(priors).transpose() * derivative.bottomRows(priors);
  fit.covariance = information.ldlt().solve(MatrixXd::Identity(problem.inputs(), problem.inputs()));
  if (!fit.covariance.allFinite()) return std::nullopt;
  Index row = 0;
  for (const LossCurve& curve : curves) {
    fit.residuals.emplace_back();
    for (const LossCurvePoint& point : curve) {
      if (!std::isnan(point.loss)) fit.residuals.back().push_back(-value[row++]);
    }
  }
  return fit;
}

}  // namespace tycho::analyzer
