#pragma once

#include "src/compare/run_digest.h"

namespace tycho::analyzer {

/// tr Sigma / |G|^2 of a run, as the ratio of means over all of it; NaN where it was not measured
/// or not resolved from zero.
double noise_scale(const RunDigest& run);

}  // namespace tycho::analyzer
