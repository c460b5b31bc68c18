#pragma once

#include <cstdint>
#include <string>

#include "laws/training_regime.h"
#include "src/statistics/recent_half.h"
#include "tycho/analyzer/frame.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// What the laws of the central flow have in common: which observations count, and why there may be
/// none.
///
/// At the edge gradient descent oscillates along the top eigenvector u, w = w_mean +- x u. Averaged
/// over the oscillation the gradient is grad L + (x^2/2) grad S with S = u'Hu (Cohen et al. 2024):
/// the oscillation pushes S down, and S stays at the threshold where the push balances the
/// sharpening of the flow, x^2 = 2 <-grad L, grad S>/|grad S|^2. The speed of the flow drops out:
/// the same holds with momentum.
///
/// Which observations are at the edge: S within kBand of the threshold, after it was first within
/// kReached of it. The average of dS/dt over the time that S spends in a band is the change of S,
/// clipped to the band, over that time: selecting by S does not bias <x^2> over many cycles.
/// (u.update)^2/4 = s^2 x^2 and the mean of x^2 before and after is (s^2 + (1-s)^2) x^2, s = S over
/// threshold: within the band they agree to kBand^2 = 4 %. One critical mode: the next eigenvalue
/// is below kSecond of the threshold, where an oscillation decays by 1 - 2 (1 - kSecond) a step.
class CentralFlowSeries {
 public:
  static constexpr double kBand = 0.2;
  static constexpr double kReached = 0.05;
  static constexpr double kSecond = 0.95;

  void begin(const RunContext& context);
  void observe(const Frame& frame);

  /// Why nothing can be said, with the verdict that goes with it; true where something can.
  bool ready(Finding* finding) const;

  /// Of the recent half of the observations at the edge: variance, variance predicted, loss excess,
  /// loss excess predicted (S/2 times variance predicted).
  const RecentHalf& edge() const { return edge_; }
  /// Mean distance of single observations from their prediction, over the mean prediction: where it
  /// is small, a trend of both does no harm.
  double variance_distance() const {
    return distance_.blocks().ratio({1, 0, 0, 0}, {0, 1, 0, 0}).value;
  }
  double excess_distance() const {
    return distance_.blocks().ratio({0, 0, 1, 0}, {0, 0, 0, 1}).value;
  }
  const BatchRegime& regime() const { return regime_; }
  double last_loss() const { return last_loss_; }

 private:
  const RunContext* context_ = nullptr;
  std::string why_not(const v1::OptimizerSettings* settings) const;

  ColumnIndex variance_ = kNoColumn;
  ColumnIndex predicted_ = kNoColumn;
  ColumnIndex excess_ = kNoColumn;
  ColumnIndex sharpness_ = kNoColumn;
  ColumnIndex second_ = kNoColumn;
  ColumnIndex threshold_ = kNoColumn;
  ColumnIndex learning_rate_ = kNoColumn;
  ColumnIndex probe_loss_ = kNoColumn;
  BatchRegime regime_;
  uint64_t measured_ = 0;
  bool reached_ = false;
  double known_threshold_ = kUnknown;
  double first_threshold_ = kUnknown;  // of the stretch
  double last_ratio_ = kUnknown;       // S over threshold
  double last_loss_ = kUnknown;
  std::string why_not_;
  uint64_t settings_version_ = 0;
  RecentHalf share_{2};  // of the observations in a row: in the band; in it with one critical mode
  RecentHalf edge_{4};
  RecentHalf distance_{4};  // |variance - predicted|, predicted, the same of the loss excess
};

}  // namespace tycho::analyzer
