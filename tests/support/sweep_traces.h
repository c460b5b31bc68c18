#pragma once

#include <cstdint>
#include <string>

namespace tycho::testing {

/// A run whose statistics follow from formulas, for comparing runs: three layers 32 -> width ->
/// width -> 10, a loss that falls with steps over 1 + B_crit/B and is lower for wider networks, and
/// changes of features that do not depend on width (`stable`), or grow with it behind matrices that
/// do.
struct SweepTrace {
  std::string name;
  int width = 128;
  double batch_size = 64;
  double critical_batch = 200;
  double learning_rate = 0.01;
  uint32_t seed = 0;
  bool stable = true;
  int64_t steps = 1000;
  int64_t layers_every = 10;  ///< cadence of statistics of layers; the first ten steps always
  std::string extra_layer;    ///< empty: none
  bool with_features = true;
  bool seal = true;             ///< false: as if the process had been killed
  int64_t first_bad_step = -1;  ///< from here on the loss is NaN; -1: never
};

/// Writes the trace of one run; fails the calling test where that is not possible.
void write_sweep_trace(const std::string& directory, const SweepTrace& sweep);

}  // namespace tycho::testing
