#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string>
#include <vector>

// Squared norms of per-example gradients from an operator's inputs and the gradient of its output,
// without one backward per example (theory T1.1). Every function is pure: no autograd, no random
// numbers.
namespace tycho::per_example {

/// How the examples lie in the tensors of one forward pass.
struct Batch {
  int64_t size = 0;  ///< examples
  int64_t dim = 0;   ///< their dimension in tensors that were not flattened
  /// Operators have moved, repeated or joined examples: only what cannot be mistaken is taken.
  bool rearranged = false;
};

/// One use of one parameter by one operator.
struct Use {
  std::string name;                    ///< operator, for example aten::conv2d
  std::vector<c10::IValue> arguments;  ///< inputs; only those the formula needs are kept
  size_t position = 0;                 ///< which argument is the parameter, or a view of it
  at::Tensor argument;                 ///< that argument
};

/// The examples' contributions to the gradient of the argument.
struct Contribution {
  at::Tensor norm_sq;      ///< float64 [b]
  at::Tensor per_example;  ///< [b, argument's shape]; only where it was asked for
  std::string why_not;     ///< not empty: not to be had exactly
};

/// Whether an operator is known here with its parameter at this position. Otherwise `why_not` says
/// why.
bool recognised(const Use& use, std::string* why_not);

/// Which argument the parameter at use.position meets: the activation, or an embedding's indices.
size_t operand(const Use& use);

/// `output_gradient`: gradient of the operator's (first) output. `materialise`: per-example
/// gradients too.
Contribution contribution(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                          bool materialise);

// By family. `wanted` is the gradient [b, ...] or its norms, as for contribution().
Contribution linear(const at::Tensor& input, const at::Tensor& output_gradient,
                    bool argument_is_transposed, const Batch& batch, bool materialise);
Contribution broadcast(const at::Tensor& argument, const at::Tensor& factor,
                       const at::Tensor& output_gradient, const Batch& batch, bool materialise);
Contribution convolution(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                         bool materialise);
Contribution embedding(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                       bool materialise);
Contribution normalization(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                           bool materialise);

/// Tensors as [b, positions, features...]: rows of flattened tensors are grouped by example.
/// Undefined where the examples cannot be found.
at::Tensor by_example(const at::Tensor& tensor, int64_t feature_dims, const Batch& batch);
/// float32 for half precision, the tensor itself otherwise.
at::Tensor widen(const at::Tensor& tensor);
/// float64 [b]: squared norms over all dimensions but the first.
at::Tensor row_norm_sq(const at::Tensor& rows);
Contribution failure(std::string why_not);
Contribution from_gradients(const at::Tensor& gradients, bool materialise);

}  // namespace tycho::per_example
