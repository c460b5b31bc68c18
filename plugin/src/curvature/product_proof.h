#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tycho/loss_surface.h"

namespace tycho {

/// Fills memory that is free with NaN: who reads what nobody wrote is found out. At most 24 MiB,
/// and on a CPU no more than malloc holds free, because what comes from the kernel is zero and new:
/// its page faults cost more than the products of a small network.
void poison_free_memory(const at::TensorOptions& options);

/// Whether two results that should be the same are, up to rounding in another order: in each block
/// to 1e-9 of it in float64, 1e-4 in float32. False where one is not finite.
bool is_repeated(const at::Tensor& once, const at::Tensor& twice,
                 const std::vector<LossSurface::Block>& blocks, bool wide);

/// Hessian-vector products that are to be proved, and what they are held against.
struct ProductTrial {
  /// H v by double backward, evaluated anew at each call. May throw.
  std::function<at::Tensor(const at::Tensor& v)> product;
  /// (g(theta + h v) - g(theta - h v)) / 2h with h proportional to `scale`.
  std::function<at::Tensor(const at::Tensor& v, double scale)> difference;
  const std::vector<LossSurface::Block>* blocks = nullptr;  ///< by which errors are looked at
  at::TensorOptions options;                                ///< of vectors
  bool wide = false;                                        ///< float64
  /// Somebody's own autograd function is among the operators: nothing is taken on trust.
  bool foreign = false;
  uint64_t seed = 0;  ///< of the random directions
};

struct ProductVerdict {
  enum Kind {
    kProved,     ///< or, without foreign operators, nothing speaks against them
    kUndecided,  ///< foreign, and the differences are too rough: they may be wrong by `error`
    kRefuted
  };
  Kind kind = kProved;
  std::string why;   ///< of kRefuted
  double error = 0;  ///< |error of H v| / |H v| up to which it is not excluded
};

/// Whether products are those of a second derivative, for random directions u and v: H v comes out
/// the same twice, though freed memory is filled with NaN in between; <u, H v> = <v, H u>; and H v
/// is what differences of gradients converge to, parameter by parameter. Differences of kinked
/// functions (ReLU) are rough at some scales, so they refute only where they agree among themselves
/// at two scales. Detected are errors of a parameter's part of H v above 1e-5 of it in float64,
/// above 1e-2 in float32, and there, without foreign operators, above 0.3. Three products and six
/// gradients.
ProductVerdict prove_products(const ProductTrial& trial);

/// How good differences are where they have to serve, and at which scale they are best.
struct DifferenceQuality {
  double scale = 1;
  double error = 0;      ///< |difference at two scales| / |H v|
  double asymmetry = 0;  ///< of <u, H v> - <v, H u>, relative to |H v|
  /// Whether the gradient is that of a function at all: straight-through estimators have none.
  bool symmetric() const { return asymmetry <= 1e-2 + 3 * error; }
};
/// Eight gradients.
DifferenceQuality assess_differences(const ProductTrial& trial);

}  // namespace tycho
