#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rows/layout.h"

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
  /// Where they lie in the output of the operator that is looked at, if that is known. Then nothing
  /// else is looked at but `size`.
  std::optional<rows::Layout> rows;
};

/// Vectors of random numbers, mean 0 and variance 1, between which a gradient is taken, to compare
/// sums of gradients without making them: `left` for the argument's first dimension, `right` for
/// the others together.
struct Projection {
  at::Tensor left;
  at::Tensor right;
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
  at::Tensor projected;    ///< float64 scalar: left' G right of their sum; where it was asked for
  /// Of a matrix: its gradient of example i is the sum over t of a_it b_it'; [b, t, rows] and
  /// [b, t, columns]. Several uses of it are joined along t.
  at::Tensor row_factor;
  at::Tensor column_factor;
  std::string why_not;  ///< not empty: not to be had exactly
};

/// Whether an operator is known here with its parameter at this position. Otherwise `why_not` says
/// why.
bool recognised(const Use& use, std::string* why_not);

/// Which argument the parameter at use.position meets: the activation, or an embedding's indices.
size_t operand(const Use& use);

/// Whether contribution() gives factors.
bool has_factors(const Use& use);

/// How many of the last dimensions of its output are one row's features; the others may hold
/// examples.
int64_t output_features(const Use& use, const at::Tensor& output);

/// The same use of the same numbers with all dimensions before the features as one; the gradient of
/// its output likewise. False where the operator does not have them in one place.
bool flatten(Use* use, at::Tensor* output_gradient);

/// What is wanted beside the norms.
struct Wanted {
  bool materialise = false;  ///< per-example gradients
  const Projection* projection = nullptr;
};

/// `output_gradient`: gradient of the operator's (first) output.
Contribution contribution(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                          const Wanted& wanted);

// By family.
Contribution linear(const at::Tensor& input, const at::Tensor& output_gradient,
                    bool argument_is_transposed, const Batch& batch, const Wanted& wanted);
/// From the factors [b, t, rows] and [b, t, columns] of a matrix's gradients.
Contribution outer_products(const at::Tensor& rows, const at::Tensor& columns,
                            const Wanted& wanted);
Contribution broadcast(const at::Tensor& argument, const at::Tensor& factor,
                       const at::Tensor& output_gradient, const Batch& batch, const Wanted& wanted);
/// y = x where it is positive, p x elsewhere.
Contribution slope(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                   const Wanted& wanted);
/// y_o = x' W_o z.
Contribution bilinear(const at::Tensor& first, const at::Tensor& second,
                      const at::Tensor& output_gradient, const Batch& batch, const Wanted& wanted);
Contribution embedding_bag(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                           const Wanted& wanted);
Contribution convolution(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                         const Wanted& wanted);
Contribution embedding(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                       const Wanted& wanted);
/// An embedding's, from indices [b, t] and gradients of what was found there [b, t, features].
Contribution looked_up(const Use& use, const at::Tensor& indices, at::Tensor d,
                       const Wanted& wanted);
Contribution normalization(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                           const Wanted& wanted);

/// Tensors as [b, positions, features...]: rows of flattened tensors are grouped by example.
/// Undefined where the examples cannot be found.
at::Tensor by_example(const at::Tensor& tensor, int64_t feature_dims, const Batch& batch);
/// The same of rows that lie along the first dimension as `batch.rows` says of another one:
/// [rows, ...] -> [b, rows of each, ...].
at::Tensor group_rows(const at::Tensor& rows, const Batch& batch);
/// left' G right of a gradient of the argument's shape, float64.
at::Tensor project(const at::Tensor& gradient, const Projection& projection);
/// For an argument of these sizes. Repeats with `seed`; takes no numbers from any generator of the
/// program.
Projection make_projection(at::IntArrayRef sizes, const at::Tensor& like, uint64_t seed);
/// float32 for half precision, the tensor itself otherwise.
at::Tensor widen(const at::Tensor& tensor);
/// float64 [b]: squared norms over all dimensions but the first.
at::Tensor row_norm_sq(const at::Tensor& rows);
Contribution failure(std::string why_not);
Contribution from_gradients(const at::Tensor& gradients, const Wanted& wanted);

}  // namespace tycho::per_example
