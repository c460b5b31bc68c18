#include "matrix/weight_matrix.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <utility>

#include "matrix/kernels.h"

namespace tycho {
namespace {

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) result *= size;
  return result;
}

/// Pairs (input, output) of positions that one offset of the kernel joins, along one dimension:
/// large = small * stride - padding + offset * dilation.
int64_t uses_of(int64_t offset, int64_t small, int64_t large, int64_t stride, int64_t padding,
                int64_t dilation) {
  int64_t count = 0;
  for (int64_t i = 0; i < small; ++i) {
    const int64_t position = i * stride - padding + offset * dilation;
    count += position >= 0 && position < large;
  }
  return count;
}

}  // namespace

std::optional<WeightMatrix> WeightMatrix::of(const ParameterInfo& parameter, const LayerInfo& layer,
                                             const ConvolutionGeometry& geometry) {
  const at::Tensor& tensor = parameter.tensor;
  if (tensor.layout() != at::kStrided || !tensor.is_floating_point() || tensor.numel() == 0) {
    return std::nullopt;
  }
  WeightMatrix matrix;
  if (tensor.dim() == 2) {
    const bool table = layer.type.find("Embedding") != std::string::npos;
    matrix.inputs_ = table ? 1 : static_cast<double>(tensor.size(1));
    matrix.outputs_ = static_cast<double>(tensor.size(table ? 1 : 0));
    return matrix;
  }
  if (tensor.dim() < 3 || tensor.dim() > 5 || geometry.input.empty() ||
      static_cast<int64_t>(geometry.input.size()) != tensor.dim() - 2) {
    return std::nullopt;
  }
  const ConvolutionGeometry& g = geometry;
  matrix.geometry_ = g;
  matrix.input_channels_ = g.transposed ? tensor.size(0) : tensor.size(1) * g.groups;
  matrix.output_channels_ = g.transposed ? tensor.size(1) * g.groups : tensor.size(0);
  at::Tensor uses = at::ones({1}, at::kDouble);
  for (size_t i = 0; i < g.input.size(); ++i) {
    const int64_t kernel = tensor.size(static_cast<int64_t>(i) + 2);
    const int64_t reach = g.dilation[i] * (kernel - 1) + 1;
    const int64_t output =
        g.transposed
            ? (g.input[i] - 1) * g.stride[i] - 2 * g.padding[i] + reach + g.output_padding[i]
            : (g.input[i] + 2 * g.padding[i] + g.more_at_end[i] - reach) / g.stride[i] + 1;
    if (g.input[i] < 1 || output < 1) return std::nullopt;
    matrix.output_.push_back(output);
    at::Tensor along = at::zeros({kernel}, at::kDouble);
    for (int64_t offset = 0; offset < kernel; ++offset) {
      along.data_ptr<double>()[offset] = static_cast<double>(
          uses_of(offset, g.transposed ? g.input[i] : output, g.transposed ? output : g.input[i],
                  g.stride[i], g.padding[i], g.dilation[i]));
    }
    uses = at::outer(uses, along).reshape({-1});
  }
  matrix.uses_ = uses.reshape(tensor.sizes().slice(2));
  matrix.inputs_ = static_cast<double>(matrix.input_channels_ * product(g.input));
  matrix.outputs_ = static_cast<double>(matrix.output_channels_ * product(matrix.output_));
  return matrix;
}

at::Tensor WeightMatrix::apply(const at::Tensor& kernel, const at::Tensor& input) const {
  const ConvolutionGeometry& g = geometry_;
  std::vector<int64_t> more;
  for (size_t i = g.input.size(); i-- > 0;) {
    more.push_back(0);
    more.push_back(g.more_at_end[i]);
  }
  const bool even = std::all_of(more.begin(), more.end(), [](int64_t zeros) { return zeros == 0; });
  return at::convolution(even ? input : at::constant_pad_nd(input, more), kernel, {}, g.stride,
                         g.padding, g.dilation, g.transposed, g.output_padding, g.groups);
}

/// The adjoint of a convolution is the transposed one with the same kernel, and the other way
/// round.
at::Tensor WeightMatrix::apply_adjoint(const at::Tensor& kernel, const at::Tensor& output) const {
  const ConvolutionGeometry& g = geometry_;
  std::vector<int64_t> missed(g.input.size(), 0);  // inputs at the end that no window reaches
  if (!g.transposed) {
    for (size_t i = 0; i < g.input.size(); ++i) {
      const int64_t reach = g.dilation[i] * (kernel.size(static_cast<int64_t>(i) + 2) - 1) + 1;
      missed[i] = g.input[i] + g.more_at_end[i] -
                  ((output_[i] - 1) * g.stride[i] - 2 * g.padding[i] + reach);
    }
  }
  at::Tensor input = at::convolution(output, kernel, {}, g.stride, g.padding, g.dilation,
                                     !g.transposed, missed, g.groups);
  // Zeros behind the end are no inputs, and an output padding may have room for one window more.
  for (size_t i = 0; i < g.input.size(); ++i) {
    input = input.narrow(static_cast<int64_t>(i) + 2, 0, g.input[i]);
  }
  return input;
}

GramMatrix WeightMatrix::gram(const at::Tensor& entries) const {
  GramMatrix result;
  result.vectors = entries.options();
  if (!is_kernel()) {
    const at::Tensor matrix = entries.contiguous();
    const bool rows = matrix.size(0) < matrix.size(1);
    result.dimension = std::min(matrix.size(0), matrix.size(1));
    if (matrix.device().is_cpu() && matrix.scalar_type() == at::kFloat) {
      result.one_thread = true;
      result.product = [matrix, rows](const at::Tensor& v) {
        const at::Tensor image = at::empty_like(v);
        const auto* entries = matrix.data_ptr<float>();
        if (rows) {
          std::vector<float> scratch(static_cast<size_t>(matrix.size(1)));
          kernels::gram_of_rows(entries, matrix.size(0), matrix.size(1), v.data_ptr<float>(),
                                scratch.data(), image.data_ptr<float>());
        } else {
          kernels::gram_of_columns(entries, matrix.size(0), matrix.size(1), v.data_ptr<float>(),
                                   image.data_ptr<float>());
        }
        return image;
      };
      return result;
    }
    const at::Tensor first = rows ? matrix.t() : matrix;
    result.product = [first, second = first.t()](const at::Tensor& v) {
      return at::mv(second, at::mv(first, v));
    };
    return result;
  }
  const bool by_output = outputs_ < inputs_;
  std::vector<int64_t> shape = by_output ? output_ : geometry_.input;
  shape.insert(shape.begin(), {1, by_output ? output_channels_ : input_channels_});
  result.dimension = static_cast<int64_t>(by_output ? outputs_ : inputs_);
  result.product = [matrix = *this, shape, by_output,
                    kernel = entries.contiguous()](const at::Tensor& v) {
    const at::Tensor x = v.reshape(shape);
    return by_output ? matrix.apply(kernel, matrix.apply_adjoint(kernel, x))
                     : matrix.apply_adjoint(kernel, matrix.apply(kernel, x));
  };
  return result;
}

at::Tensor WeightMatrix::frobenius_sq(const at::Tensor& entries) const {
  if (!is_kernel()) {
    const at::Tensor flat = entries.reshape({-1});
    return at::dot(flat, flat);
  }
  const at::Tensor by_offset = (entries * entries).sum(at::IntArrayRef({0, 1}));
  return (by_offset * uses_.to(entries.options())).sum();
}

}  // namespace tycho
