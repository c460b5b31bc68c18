#include <ATen/ATen.h>

#include "per_example.h"

namespace tycho::per_example {

// Row v of the gradient of example i is the sum of d_it over the positions t with index v; its
// squared norm is the sum of d_t . d_t' over pairs of positions with the same index. Positions with
// padding_idx get no gradient.
Contribution embedding(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                       bool materialise) {
  const int64_t padding = use.arguments[2].toInt();
  const at::Tensor indices = by_example(use.arguments[1].toTensor(), 0, batch);
  at::Tensor d = by_example(widen(output_gradient), 1, batch);
  if (!indices.defined() || !d.defined() || d.size(1) != indices.size(1)) {
    return failure("the examples cannot be found in its input");
  }
  if (padding >= 0) d = d.masked_fill(indices.eq(padding).unsqueeze(2), 0);
  if (materialise) {
    const int64_t rows = use.argument.size(0);
    const at::Tensor example = at::arange(batch.size, indices.options()).unsqueeze(1).mul(rows);
    at::Tensor gradients = at::zeros({batch.size * rows, d.size(2)}, d.options());
    gradients.index_add_(0, (indices + example).reshape({-1}), d.reshape({-1, d.size(2)}));
    return from_gradients(gradients.reshape({batch.size, rows, d.size(2)}), true);
  }
  Contribution result;
  const at::Tensor same = indices.unsqueeze(1).eq(indices.unsqueeze(2));
  result.norm_sq = at::bmm(d, d.transpose(1, 2)).mul_(same).sum({1, 2}, false, at::kDouble);
  return result;
}

}  // namespace tycho::per_example
