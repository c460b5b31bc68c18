#pragma once

#include <string>
#include <vector>

#include "per_example/per_example.h"

namespace tycho::per_example {

/// Which elements of a parameter an operator's argument covers, and in which shape.
struct View {
  std::vector<int64_t> sizes, strides;
  int64_t offset = 0;
  int64_t elements = 0;

  explicit View(const at::Tensor& tensor);
  bool operator==(const View& other) const {
    return sizes == other.sizes && strides == other.strides && offset == other.offset;
  }
  /// Of views without gaps, whatever the order of their dimensions.
  bool overlaps(const View& other) const {
    return offset < other.offset + other.elements && other.offset < offset + elements;
  }
};

/// What one use of a parameter contributed in one backward pass.
struct Part {
  Contribution contribution;
  View view;
  Projection projection;  ///< that of `projected`: the same for the same view
  bool low_precision = false;
};

/// All uses together.
struct Joined {
  at::Tensor norm_sq;     ///< float64 [b]
  at::Tensor difference;  ///< float64 scalar: of the examples' sum and the gradient, relative to
                          ///< the sum of the examples' norms; NaN where nothing is finite or all 0
  double tolerance = 0;   ///< what `difference` may be by rounding
  std::string why_not;
};

/// Squared norms of the examples' gradients summed over the uses, and how far their sum is from
/// `delivered`: in a random projection, or, where views overlap, element by element. Parts of the
/// same view are joined by their factors, or by their per-example gradients.
Joined join(std::vector<Part> parts, const at::Tensor& parameter, const at::Tensor& delivered);

/// Why Joined::difference says that something is missing; empty: it does not. Waits for the device.
std::string does_not_add_up(const at::Tensor& difference, double tolerance);

/// Per-example gradients of one parameter are made one beside the other only up to this size.
constexpr int64_t kMaxMaterialisedElements = int64_t{1} << 26;

}  // namespace tycho::per_example
