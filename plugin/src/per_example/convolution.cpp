#include <ATen/ATen.h>

#include "per_example.h"
#include "tensor_sums.h"

namespace tycho::per_example {
namespace {

// A list argument with one entry for all dimensions, or one for each.
std::vector<int64_t> expand(const c10::IValue& value, size_t dims) {
  std::vector<int64_t> list =
      value.isInt() ? std::vector<int64_t>{value.toInt()} : value.toIntVector();
  if (list.size() == 1) list.resize(dims, list[0]);
  return list;
}

// Patches of x under each kernel position: [b, groups, channels/groups * kernel, positions].
at::Tensor patches(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef positions,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, int64_t groups) {
  const size_t dims = kernel.size();
  std::vector<int64_t> pad;
  for (size_t i = dims; i-- > 0;) {
    // Whatever lies beyond the last window is not read; a transposed convolution may need more on
    // the right.
    const int64_t needed = (positions[i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1;
    const int64_t right = needed - x.size(static_cast<int64_t>(i) + 2) - padding[i];
    pad.push_back(padding[i]);
    pad.push_back(std::max<int64_t>(right, 0));
  }
  const at::Tensor padded = at::constant_pad_nd(x, pad).contiguous();
  std::vector<int64_t> sizes{padded.size(0), padded.size(1)};
  std::vector<int64_t> strides{padded.stride(0), padded.stride(1)};
  for (size_t i = 0; i < dims; ++i) {
    sizes.push_back(kernel[i]);
    strides.push_back(padded.stride(static_cast<int64_t>(i) + 2) * dilation[i]);
  }
  int64_t count = 1;
  for (size_t i = 0; i < dims; ++i) {
    sizes.push_back(positions[i]);
    strides.push_back(padded.stride(static_cast<int64_t>(i) + 2) * stride[i]);
    count *= positions[i];
  }
  return padded.as_strided(sizes, strides).reshape({x.size(0), groups, -1, count});
}

}  // namespace

// The gradient of example i is, per group, D_i P_i^T with the patches P_i of its input under each
// output position. In a transposed convolution input and output change roles.
Contribution convolution(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                         const Wanted& wanted) {
  const auto& arguments = use.arguments;
  const at::Tensor input = widen(arguments[0].toTensor());
  const at::Tensor d = widen(output_gradient);
  const at::Tensor weight = arguments[1].toTensor();
  const auto dims = static_cast<size_t>(weight.dim() - 2);
  const bool first = batch.rows ? batch.rows->dim == 0 : batch.dim == 0 && d.size(0) == batch.size;
  if (!first || d.dim() != weight.dim()) {
    return failure("the examples are not the first dimension of its input");
  }
  if (use.position == 2) {
    const at::Tensor grouped = group_rows(d.reshape({d.size(0), d.size(1), -1}).sum(2), batch);
    if (!grouped.defined()) return failure("the examples cannot be found in its input");
    return from_gradients(grouped.sum(1), wanted);
  }
  const bool transposed = use.name.find("transpose") != std::string::npos;
  if (arguments[4].isString()) return failure("its padding is given in words");
  const std::vector<int64_t> stride = expand(arguments[3], dims);
  const std::vector<int64_t> padding = expand(arguments[4], dims);
  const std::vector<int64_t> dilation = expand(arguments[transposed ? 7 : 5], dims);
  const int64_t groups = arguments[6].toInt();
  const at::Tensor& source = transposed ? d : input;
  const at::Tensor& target = transposed ? input : d;
  const at::Tensor p = patches(source, weight.sizes().slice(2), target.sizes().slice(2), stride,
                               padding, dilation, groups);
  const int64_t rows = target.size(1) / groups;
  const int64_t columns = p.size(2);
  // Several images of one example are more positions: [b, images, groups, k, positions] ->
  // [b groups, k, images positions].
  const auto by_group = [&](const at::Tensor& images, int64_t size) {
    const at::Tensor grouped =
        group_rows(images.reshape({images.size(0), groups, size, -1}), batch);
    return grouped.defined()
               ? grouped.permute({0, 2, 3, 1, 4}).reshape({batch.size * groups, size, -1})
               : grouped;
  };
  const at::Tensor p3 = by_group(p, columns);
  const at::Tensor t3 = by_group(target, rows);
  if (!p3.defined() || !t3.defined()) return failure("the examples cannot be found in its input");
  const int64_t positions = p3.size(2);
  if (!wanted.materialise && positions * (rows + columns) < rows * columns) {
    Contribution result;
    const at::Tensor pairs =
        row_products(at::bmm(p3.transpose(1, 2), p3), at::bmm(t3.transpose(1, 2), t3));
    result.norm_sq = pairs.reshape({batch.size, groups}).sum(1);
    if (wanted.projection != nullptr) {
      const at::Tensor left = wanted.projection->left.to(t3.scalar_type())
                                  .reshape({1, groups, 1, rows})
                                  .expand({batch.size, groups, 1, rows})
                                  .reshape({batch.size * groups, 1, rows});
      const at::Tensor right =
          at::matmul(wanted.projection->right.to(p3.scalar_type()), p3).unsqueeze(1);
      result.projected = (at::bmm(left, t3) * right).sum(at::kDouble);
    }
    return result;
  }
  std::vector<int64_t> shape = weight.sizes().vec();
  shape.insert(shape.begin(), batch.size);
  return from_gradients(at::bmm(t3, p3.transpose(1, 2)).reshape(shape), wanted);
}

}  // namespace tycho::per_example
