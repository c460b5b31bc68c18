#include <ATen/ATen.h>

#include "per_example.h"
#include "tensor_sums.h"

namespace tycho::per_example {

// The gradient of example i is sum_t a_it b_it^T. One position: |a_i|^2 |b_i|^2. Several: either
// the sum over pairs of positions of (a_t . a_t')(b_t . b_t'), or the matrix itself, whichever is
// less work.
Contribution outer_products(const at::Tensor& rows, const at::Tensor& columns,
                            const Wanted& wanted) {
  const int64_t positions = rows.size(1);
  Contribution result;
  if (wanted.materialise) {
    result = from_gradients(at::bmm(rows.transpose(1, 2), columns), wanted);
  } else {
    if (positions == 1) {
      result.norm_sq = row_norm_sq(rows) * row_norm_sq(columns);
    } else if (positions * (rows.size(2) + columns.size(2)) < rows.size(2) * columns.size(2)) {
      result.norm_sq = row_products(at::bmm(rows, rows.transpose(1, 2)),
                                    at::bmm(columns, columns.transpose(1, 2)));
    } else {
      result.norm_sq = row_norm_sq(at::bmm(rows.transpose(1, 2), columns));
    }
    if (wanted.projection != nullptr) {
      const at::Tensor left = at::matmul(rows, wanted.projection->left.to(rows.scalar_type()));
      const at::Tensor right =
          at::matmul(columns, wanted.projection->right.to(columns.scalar_type()));
      result.projected = (left * right).sum(at::kDouble);
    }
  }
  result.row_factor = rows;
  result.column_factor = columns;
  return result;
}

// y = x W^T: the gradient of example i is sum_t d_it x_it^T.
Contribution linear(const at::Tensor& input, const at::Tensor& output_gradient,
                    bool argument_is_transposed, const Batch& batch, const Wanted& wanted) {
  const at::Tensor x = by_example(widen(input), 1, batch);
  const at::Tensor d = by_example(widen(output_gradient), 1, batch);
  if (!x.defined() || !d.defined() || x.size(1) != d.size(1)) {
    return failure("the examples cannot be found in its input");
  }
  // Autocast computes in another precision than that of the input.
  const at::Tensor x_same = x.to(d.scalar_type());
  return argument_is_transposed ? outer_products(x_same, d, wanted)
                                : outer_products(d, x_same, wanted);
}

// The gradient of example i is sum_t d_ito x_itj z_itk: that of a matrix [out, in1 in2] whose input
// is the product of the two.
Contribution bilinear(const at::Tensor& first, const at::Tensor& second,
                      const at::Tensor& output_gradient, const Batch& batch, const Wanted& wanted) {
  const at::Tensor x = by_example(widen(first), 1, batch);
  const at::Tensor z = by_example(widen(second), 1, batch);
  const at::Tensor d = by_example(widen(output_gradient), 1, batch);
  if (!x.defined() || !z.defined() || !d.defined()) {
    return failure("the examples cannot be found in its inputs");
  }
  const at::Tensor product = (x.unsqueeze(3) * z.unsqueeze(2)).flatten(2);
  Contribution result = outer_products(d, product, wanted);
  if (result.per_example.defined()) {
    result.per_example = result.per_example.reshape({d.size(0), d.size(2), x.size(2), z.size(2)});
  }
  return result;
}

}  // namespace tycho::per_example
