#pragma once

#include <cstdint>
#include <string>

#include "tests/support/trace_samples.h"

namespace tycho::testing {

/// A layer name that would run a program, end an element or leave a string if it were not escaped.
inline const char* const kHostileName = "</script><img src=x onerror=\"alert('1')\">, & \x1b[31m";

/// Three steps of two layers whose names are hostile, with NaN, infinities of both signs, the
/// smallest and the largest double, and one standard error.
void write_golden_run(const std::string& directory);

/// Eigenvalues 3 and 2 at step 0, 4 at step 1.
void write_list_run(const std::string& directory);

/// Ten steps whose curvature was measured: sharpness 30 with error bound 1, edge at 40, two layers
/// holding 0.3 and 0.7 of the top eigenvector, three eigenvalues, and a spectral density.
void write_curvature_run(const std::string& directory);

/// `steps` steps of four layers, with a loss, sealed.
void write_long_run(const std::string& directory, int64_t steps);

}  // namespace tycho::testing
