#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "matrix/largest_singular_values.h"
#include "tycho/probe.h"

namespace tycho {

/// A parameter as the matrix with which its layer maps inputs to outputs.
class WeightMatrix {
 public:
  /// - Two dimensions: [outputs, inputs], as LibTorch's layers hold them.
  /// - An embedding's table (two dimensions, in a layer whose type says Embedding): one row for
  /// each
  ///   symbol. An input is one symbol, a vector of norm 1, so it counts as one input.
  /// - A kernel whose use was seen: the convolution on inputs of the size that was seen, with its
  ///   stride, zero padding, dilation and groups. With other kinds of padding it is the operator
  ///   behind the padding.
  /// nullopt: none of these (biases, gains, kernels that were not seen yet, sparse tensors), or one
  /// without entries.
  static std::optional<WeightMatrix> of(const ParameterInfo& parameter, const LayerInfo& layer,
                                        const ConvolutionGeometry& geometry);

  /// Entries of inputs and outputs, for spectral norms in units of sqrt(outputs / inputs).
  double inputs() const { return inputs_; }
  double outputs() const { return outputs_; }
  /// The same matrix with other entries: a tensor of the parameter's shape, in float32 or float64.
  GramMatrix gram(const at::Tensor& entries) const;
  /// Sum of the squares of all entries of the matrix: a scalar tensor.
  at::Tensor frobenius_sq(const at::Tensor& entries) const;

 private:
  bool is_kernel() const { return !geometry_.input.empty(); }
  at::Tensor apply(const at::Tensor& kernel, const at::Tensor& input) const;
  at::Tensor apply_adjoint(const at::Tensor& kernel, const at::Tensor& output) const;

  ConvolutionGeometry geometry_;  // of a kernel only
  std::vector<int64_t> output_;   // its output's size
  int64_t input_channels_ = 0;
  int64_t output_channels_ = 0;
  /// How often the kernel's entries at one offset occur in the matrix, in the kernel's shape.
  at::Tensor uses_;
  double inputs_ = 0;
  double outputs_ = 0;
};

}  // namespace tycho
