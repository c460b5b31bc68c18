#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace tycho {

/// A real matrix A, known by its Gram matrix on one of its sides.
struct GramMatrix {
  int64_t dimension = 0;      ///< of that side, >= 1
  at::TensorOptions vectors;  ///< floating point type and device that products are made in
  /// v -> A'A v (or A A' v) of a flat, contiguous vector.
  std::function<at::Tensor(const at::Tensor&)> product;
  bool one_thread = false;  ///< a product takes one thread, and several may be formed at once
};

struct LargestSingularValue {
  double value = 0;  ///< never above the exact one, but for rounding
  double error = 0;  ///< the exact one is above by no more, with probability 99 %
  int64_t products = 0;
  bool finite = true;  ///< false: a product was not finite, and nothing else is there
};

struct SingularValueOptions {
  double tolerance = 2e-2;    ///< of the error, relative to the value
  int64_t max_products = 40;  ///< per matrix, >= 1; the error may then be larger
};

/// The largest singular value of each matrix, by Lanczos on its Gram matrix from a random vector,
/// in a basis that is kept orthogonal.
///
/// The error follows from the start alone, whatever the matrix: a vector uniform on the sphere has
/// at least d = 0.01 sqrt(pi / 2n) of the leading direction with probability 99 %, and then the
/// largest eigenvalue lies below where the characteristic polynomial of the tridiagonal matrix,
/// over the product of its couplings, reaches 1 / d (van Dorsselaer, Hochstenbach & van der Vorst
/// 2001). What is found is nearer than that by far: of noise, which has no gap, 14 products of
/// dimension 128 are within 0.3 % on average; of updates, which have one, 5 are enough.
///
/// All matrices advance together: their products are queued, and fetched in one transfer, so that a
/// device is waited for as often as the slowest of them takes products. Vectors and recurrences are
/// in float64 on the host. Zero gives zero. Costs the products and 4 k^2 n operations for k of
/// them in dimension n.
std::vector<LargestSingularValue> largest_singular_values(const std::vector<GramMatrix>& matrices,
                                                          const SingularValueOptions& options,
                                                          at::Generator generator);

}  // namespace tycho
