#pragma once

#include "tycho/loss_surface.h"

namespace tycho {

/// A LossSurface whose Hessian-vector products were checked against differences of gradients.
class ProvedProducts {
 public:
  virtual ~ProvedProducts() = default;
  /// |error of H v| / |H v| that products may have beyond rounding, as found at the latest check: 0
  /// before the first product. Part of every error bound based on products.
  virtual double product_error() const = 0;
};

/// 0 for a surface that does not provide it.
inline double product_error_of(const LossSurface& surface) {
  const auto* proved = dynamic_cast<const ProvedProducts*>(&surface);
  return proved == nullptr ? 0 : proved->product_error();
}

}  // namespace tycho
