#pragma once

#include <Eigen/Core>
#include <vector>

#include "src/schedule/loss_curve.h"

namespace tycho::analyzer {

/// How the loss depends on the learning rates so far. With S(t) the sum of the rates up to step t,
/// and d_k = eta_{k-1} - eta_k the change at step t_k, below 0 where the rate rises:
///   kPower       L = L0 + A S^-a: at a constant rate, where S is the rate times the step (T2.14).
///   kAnnealing   L = L0 + A S^-a - C sum_k d_k (1 - exp(-(t - t_k) / tau)) (Tissue et al. 2024,
///                arXiv:2408.11029, whose Lambda is exp(-1 / tau) and whose C is this one times
///                1 - Lambda).
///   kMultiPower  L = L0 + A S^-a - B sum_k d_k (1 - (1 + C eta_k^-g (S(t) - S(t_k)))^-b) (Luo et
///                al. 2025, arXiv:2503.12811).
enum class LossForm { kPower, kAnnealing, kMultiPower };
/// "power law", "annealing law", "multi-power law".
const char* to_string(LossForm form);

/// A form in units in which its parameters are of order one: sums of rates over `length`, rates
/// over `peak`, steps over `steps`. Parameters are logarithms, so that every one is positive, in
/// the order (L0, A, a), then (C, tau) or (B, C, b, g).
struct LossLaw {
  LossForm form = LossForm::kPower;
  double length = 1;
  double peak = 1;
  double steps = 1;

  Eigen::Index parameters() const;

  /// Values at the points of `curve` and, where not nullptr, their derivatives by the parameters,
  /// a row a point. Of a change between two points its middle is taken, or, where it is a tenth
  /// of the peak or more, the second point; before the first point the rate is 0 at step 0, so that
  /// a warm-up counts as a rise. Rates below 1e-4 of the peak count as that. O(points * changes of
  /// the rate); of the annealing law O(points).
  void evaluate(const LossCurve& curve, const Eigen::VectorXd& parameters, Eigen::VectorXd* value,
                Eigen::MatrixXd* derivative) const;

  /// The parameters in the units of the publication: L0, A, a, then C and Lambda, or B, C, b, g.
  std::vector<double> constants(const Eigen::VectorXd& parameters) const;
};

}  // namespace tycho::analyzer
