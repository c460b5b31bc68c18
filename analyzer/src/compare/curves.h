#pragma once

#include <string>
#include <vector>

#include "src/compare/run_set.h"

namespace tycho::analyzer {

/// The statistic by which the losses of these runs are compared: that of the probe loss where all
/// recorded it at 16 bins at least, since it is the same function for all and has no batch noise,
/// else that of the steps.
std::string loss_statistic(const RunSet& set, const std::vector<size_t>& runs);

/// A series, averaged over neighbouring bins, up to the first value that is not finite.
struct Curve {
  struct Point {
    Position position;
    double value = kUnknown;
  };
  std::vector<Point> points;
  bool diverged = false;  ///< ended at a value that is not finite

  bool empty() const { return points.empty(); }
  double lowest() const;  ///< infinity where empty
  /// On straight lines between the points over ln(x + 1); NaN outside.
  double at(double x, Alignment by) const;
  /// Where it first reaches `target`; NaN where it never does.
  Position first_at_or_below(double target) const;
  double last(Alignment by) const { return empty() ? kUnknown : points.back().position.by(by); }
  double first(Alignment by) const { return empty() ? kUnknown : points.front().position.by(by); }
};

/// `reach`: bins to either side that a point averages over, fewer near the ends, so that the mean
/// position of what is averaged stays where the point is.
Curve smooth_curve(const RunDigest& run, const std::string& statistic, size_t reach = 2);

/// The largest position that all of the curves reach, and the smallest from which all are known;
/// NaN where one of them has none.
double common_end(const std::vector<Curve>& curves, Alignment by);
double common_begin(const std::vector<Curve>& curves, Alignment by);

}  // namespace tycho::analyzer
