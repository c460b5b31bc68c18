#include <ATen/ATen.h>

#include "per_example.h"
#include "tensor_sums.h"

namespace tycho::per_example {

// y = x W^T: the gradient of example i is sum_t d_it x_it^T. One position: |d_i|^2 |x_i|^2.
// Several: either the sum over pairs of positions of (x_t . x_t')(d_t . d_t'), or the matrix
// itself, whichever is less work.
Contribution linear(const at::Tensor& input, const at::Tensor& output_gradient,
                    bool argument_is_transposed, const Batch& batch, bool materialise) {
  const at::Tensor x = by_example(widen(input), 1, batch);
  const at::Tensor d = by_example(widen(output_gradient), 1, batch);
  if (!x.defined() || !d.defined() || x.size(1) != d.size(1)) {
    return failure("the examples cannot be found in its input");
  }
  const int64_t positions = x.size(1);
  if (!materialise) {
    Contribution result;
    if (positions == 1) {
      result.norm_sq = row_norm_sq(x) * row_norm_sq(d);
      return result;
    }
    if (positions * (x.size(2) + d.size(2)) < x.size(2) * d.size(2)) {
      result.norm_sq = row_products(at::bmm(x, x.transpose(1, 2)), at::bmm(d, d.transpose(1, 2)));
      return result;
    }
  }
  return from_gradients(
      argument_is_transposed ? at::bmm(x.transpose(1, 2), d) : at::bmm(d.transpose(1, 2), x),
      materialise);
}

}  // namespace tycho::per_example
