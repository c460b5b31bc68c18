#pragma once

#include <ATen/core/Tensor.h>

// Sums in float64 of tensors of any floating dtype, in one pass and without a copy in float64 where
// the tensor is float or double, contiguous and on the CPU; by ATen elsewhere. Half precision is
// not squared in half precision. Not differentiated; the order of summation does not depend on the
// number of threads.
namespace tycho {

/// Whether these sums take one pass without a copy.
bool sums_fast(const at::Tensor& tensor);

/// |x|^2 as a float64 scalar tensor on the tensor's device. Complex entries count with both parts,
/// sparse tensors (COO) with what they hold.
at::Tensor squared_norm(const at::Tensor& tensor);

/// |x|, on the host: waits for the device.
double norm_of(const at::Tensor& tensor);

/// float64 [2]: sum of x, and of x^2.
at::Tensor sum_and_square(const at::Tensor& tensor);

/// float64 [b, 2]: sum of x and of x^2 of each row [b, ...].
at::Tensor row_moments(const at::Tensor& rows);

/// float64 [b, 4]: sums of x, x y, y and y^2 over each pair of rows [b, ...] of two tensors of the
/// same shape.
at::Tensor row_cross_moments(const at::Tensor& x, const at::Tensor& y);

/// float64 [b]: inner products of the rows [b, ...] of two tensors of the same shape.
at::Tensor row_products(const at::Tensor& left, const at::Tensor& right);

}  // namespace tycho
