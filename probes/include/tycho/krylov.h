#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace tycho {

/// A symmetric matrix, known by what it does to a flat vector.
using LinearMap = std::function<at::Tensor(const at::Tensor&)>;

struct EigenOptions {
  int64_t count = 1;           ///< largest (algebraic) eigenvalues asked for, >= 1
  double tolerance = 1e-3;     ///< of the error bound, relative to the largest |Ritz value|
  int64_t max_products = 100;  ///< products with the matrix, >= 1
  /// Looks for copies of repeated eigenvalues, which no Krylov space contains: outside the vectors
  /// found, from random starts, with up to max_products more. If that does not suffice, bounds say
  /// how far up an eigenvalue may be hidden. In up to max_products dimensions, more than one
  /// eigenvalue is always computed from the whole matrix.
  bool repeated = false;
  /// Norm of the start's random part (a multiple of a vector uniform on the sphere) relative to
  /// that of the rest, from which probable bounds follow; 0: bounds from residuals, see below.
  double random_part = 0;
  /// The leading eigenspace found recently, for a matrix that has changed little since: the largest
  /// eigenvalue, and orthonormal directions [m, n] (undefined: not known). While the largest Ritz
  /// value is within a tenth of it and its vector within those directions except for a part of 0.4,
  /// bounds are taken from residuals despite a random part; and for one eigenvalue it suffices that
  /// the value rises geometrically and has less than half the tolerance to go, with a bound of 50
  /// tolerances.
  double expected = 0;
  at::Tensor expected_directions{};
};

/// Descending; never more than the dimension.
struct Eigenpairs {
  std::vector<double> values;
  /// |eigenvalue - value| is at most this. With EigenOptions::repeated at least the residual, which
  /// bounds the distance to some eigenvalue: a copy of one that is repeated may be missed.
  std::vector<double> bounds;
  at::Tensor vectors;  ///< [values, n], orthonormal
  at::Tensor leading;  ///< [m, n]: the vectors, and up to two more that were not requested
  int64_t products = 0;
  std::vector<double> history;  ///< largest Ritz value after each product
  bool converged = false;       ///< all bounds are inside the tolerance, or see expected_directions
  bool finite = true;           ///< false: a product was not finite, and nothing else is there
  bool whole = false;           ///< found in the whole space: nothing can be hidden
};

/// Lanczos with full orthogonalization from `start` (not zero).
///
/// Error bounds are of one of two kinds. With a random part r in the start, all eigenvalues lie,
/// with probability 99.9 % each, where |p(lambda)| <= beta_1 ... beta_k / |v.q_1|, with p the
/// characteristic polynomial of the tridiagonal matrix and |v.q_1| >= 1e-3 r
/// sqrt(pi/2n)/sqrt(1+r^2) (van Dorsselaer, Hochstenbach & van der Vorst 2001): a value's bound is
/// the width of its interval, whatever the matrix. Without, they rest on what the Krylov space has
/// seen: for every m >= i for which the spectrum beyond the first m Ritz vectors is below some a <
/// t_i,
///   lambda_i <= t_i + (r_1^2 + ... + r_m^2) / (t_i - a),
/// with residuals r_i = |A y_i - t_i y_i| and t_{m+1} + r_{m+1} for a; the smallest over m counts,
/// and r_i where none is smaller, doubled because a is an estimate. That needs a third of the
/// products, and misses a direction of which the start has almost no part. Eigenvalues nearer to
/// each other than the bound may be found as one, unless repeated ones are asked for. No bound is
/// below rounding: 1e-13 of the largest |Ritz value| in float64, 1e-6 in float32.
///
/// A step costs a product and 2 k n operations, or twice as many after a restart. All vectors are
/// kept, up to about 1 GiB of them (at least 24); beyond that the best are kept (thick restart),
/// and bounds are of the second kind.
Eigenpairs largest_eigenpairs(const LinearMap& matrix, const at::Tensor& start,
                              const EigenOptions& options, at::Generator generator);

/// Gauss quadrature of the spectral measure seen from a vector: node i has weight weights[i], the
/// weights sum to 1.
struct Quadrature {
  std::vector<double> nodes;  ///< descending
  std::vector<double> weights;
  bool finite = true;
};

/// Lanczos quadrature with `steps` products from `start`; with random starts its mean estimates the
/// spectral density (Ubaru, Chen & Saad 2017).
Quadrature lanczos_quadrature(const LinearMap& matrix, const at::Tensor& start, int64_t steps);

}  // namespace tycho
