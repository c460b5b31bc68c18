#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "src/compare/run_set.h"
#include "src/statistics/block_averages.h"

namespace tycho::analyzer {

/// Least-squares slope of ln y over ln x with Student's interval from the scatter about the line.
/// Not reliable with fewer than three points, or where x does not vary; pairs that are not positive
/// and finite are left out.
Estimate log_log_slope(const std::vector<std::pair<double, double>>& points,
                       double confidence = 0.95);

/// Observations of one run: step and value.
using Observations = std::vector<std::pair<double, double>>;

/// How a statistic scales along a ladder.
struct LadderSlope {
  struct AtStep {
    double step = 0;
    Estimate slope;
  };
  std::vector<AtStep> steps;  ///< where all runs were observed
  Estimate slope;             ///< of the mean over those steps of ln value, one point per run
  size_t levels = 0;          ///< that took part
  size_t runs = 0;
  std::vector<std::pair<double, double>> points;  ///< axis and geometric mean over steps, by run
};

/// Slope over the ladder's axis of what `observe` says of each run: values that are not positive
/// are left out, runs without any take no part. Runs are matched at equal steps; where one was not
/// observed at a step, between its neighbours if these are no further apart than a factor of four.
/// Of the steps that all have, the first `most_steps` count.
LadderSlope ladder_slope(const RunSet& set, const Ladder& ladder,
                         const std::function<Observations(size_t run)>& observe, size_t most_steps);

/// First values per bin of one layer; empty where it was not measured.
Observations layer_observations(const RunDigest& run, const std::string& statistic,
                                const std::string& layer);
/// Means per bin of a statistic of the run.
Observations run_observations(const RunDigest& run, const std::string& statistic);

/// The decision on an exponent predicted to be 0: HOLDS where it is within `tolerance` and its
/// interval within `excluded`, VIOLATED where its interval lies outside the tolerance, else
/// UNDERPOWERED.
Verdict judge_exponent(const Estimate& slope, double tolerance, double excluded);

}  // namespace tycho::analyzer
