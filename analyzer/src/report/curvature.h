#pragma once

#include <string>
#include <utility>
#include <vector>

#include "report.h"

namespace tycho::analyzer {

/// What was measured last of the curvature; NaN and empty where nothing was.
struct Curvature {
  double sharpness = kUnknown;                              ///< the preconditioned one
  double sharpness_error = kUnknown;                        ///< bound
  double threshold = kUnknown;                              ///< of the optimizer, in the same unit
  std::vector<std::pair<std::string, double>> layer_share;  ///< of its eigenvector, largest first
  std::vector<double> eigenvalues;                          ///< of the Hessian, descending
  std::string headroom;  ///< what the edge of stability means for the learning rate, in words
  bool any() const;
};

Curvature curvature(const Report& report);

/// One line each for the sharpness and the edge, the layers of its eigenvector, and the largest
/// eigenvalues, of those that were measured.
std::vector<std::string> curvature_lines(const Curvature& seen);

/// The spectral density on `width` columns between its outermost nodes, as characters that stand
/// for orders of magnitude; empty where it was not measured.
std::string density_picture(const Spectrum& spectrum, size_t width);

}  // namespace tycho::analyzer
