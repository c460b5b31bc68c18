#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/report/report.h"

namespace tycho::analyzer {

/// A value of a series, averaged over a short stretch of steps.
struct Sample {
  int64_t step = 0;  ///< the first of the stretch
  double value = 0;
};
using Samples = std::vector<Sample>;

/// Steps of the run, the first and the last among them.
double run_length(const Report& report);
/// Share of the run that lies before a step.
double share_before(const Report& report, int64_t step);
/// Is this one of the first few steps?
bool is_at_start(const Report& report, int64_t step);
/// Median of the values from one share of the run's steps to another; NaN where there is none.
double median_between(const Samples& samples, const Report& report, double from, double to);
double largest(const Samples& samples);

/// How one parameter fared.
struct ParameterSigns {
  size_t id = 0;
  std::string name;
  std::string layer;
  bool is_weight = false;     ///< two dimensions or more
  bool in_optimizer = false;  ///< in one of its groups
  uint64_t elements = 0;
  Samples gradient;         ///< norm of the gradient that backward delivered
  Samples update;           ///< norm of the update
  Samples relative_update;  ///< norm of the update over that of the weights
  Samples weight;           ///< norm
};

/// What decisions are made from: the course of the loss, the settings and how each parameter fared,
/// from what every session records; without the parameters where too few losses were observed for a
/// decision. Values are means over the report's stretches of steps; memory
/// and time are those of the report's series.
class Signs {
 public:
  explicit Signs(const Report& report);

  const Report& report;
  std::vector<ParameterSigns> parameters;
  Samples loss;
  Samples learning_rate;

  bool enough() const;  ///< losses and norms at enough steps to say how the run went
  Samples run(const std::string& statistic) const;
  Samples layer(const std::string& statistic, size_t id) const;
  /// Median over the weights that ever had a gradient of their median relative updates in a share
  /// of the run.
  double relative_update(double from, double to) const;
  /// Mean of the losses in a share of the run's steps; NaN where none was observed.
  double mean_loss(double from, double to) const;
  /// Losses of the first few observed steps; NaN where the first was observed late.
  double first_loss() const;
  double peak_rate() const { return largest(learning_rate); }
  /// The loss ended at most a tenth below where it began.
  bool nothing_learned() const;
  const Finding* finding(const std::string& law, const std::string& scope = "run") const;
  /// Last values; 0 where not known.
  double batch_size() const;
  v1::ParameterGroup group() const;  ///< the first of the settings used last
};

/// "layers.0.weight, layers.2.weight and 3 more".
std::string named(const std::vector<std::string>& names);
/// "3", "0.1", "10": 1, 2 or 5 times a power of ten, the nearest in logarithms.
double round_factor(double factor);

}  // namespace tycho::analyzer
