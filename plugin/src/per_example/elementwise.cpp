#include <ATen/ATen.h>

#include "per_example.h"

namespace tycho::per_example {

// y = x * p or y = x + p with p broadcast over the examples: the gradient of example i is the sum
// of d * x (or d) over the dimensions along which p is repeated.
Contribution broadcast(const at::Tensor& argument, const at::Tensor& factor,
                       const at::Tensor& output_gradient, const Batch& batch,
                       const Wanted& wanted) {
  at::Tensor d = widen(output_gradient);
  if (factor.defined()) d = d * widen(factor);
  if (d.sizes() != output_gradient.sizes()) return failure("its input is broadcast too");
  if (batch.rows) {
    // Rows of d are summed over what p is repeated along, then over those of each example.
    const int64_t dims = d.dim();
    const int64_t dim = batch.rows->dim;
    const int64_t missing = dims - argument.dim();
    if (missing < 0) return failure("it is not shared by the examples");
    std::vector<int64_t> repeated;
    for (int64_t i = 0; i < dims; ++i) {
      const bool shared = i < missing || (argument.size(i - missing) == 1 && d.size(i) != 1);
      if (i == dim && i >= missing && argument.size(i - missing) != 1) {
        return failure("it is not shared by the examples");
      }
      if (shared && i != dim) repeated.push_back(i);
    }
    if (!repeated.empty()) d = d.sum(repeated, true);
    d = d.movedim(dim, 0);
    const at::Tensor grouped = group_rows(d.reshape({d.size(0), -1}), batch);
    if (!grouped.defined()) return failure("the examples cannot be found in its input");
    std::vector<int64_t> sizes = argument.sizes().vec();
    sizes.insert(sizes.begin(), batch.size);
    return from_gradients(grouped.sum(1).reshape(sizes), wanted);
  }
  // p lacks the examples' dimension, or has size 1 there: otherwise it is not shared by the
  // examples.
  const int64_t features = argument.dim();
  if (features >= d.dim()) {
    if (features > d.dim() || batch.dim >= features || argument.size(batch.dim) != 1) {
      return failure("it is not shared by the examples");
    }
    if (d.size(batch.dim) != batch.size || batch.rearranged)
      return failure("the examples cannot be found in its input");
    at::Tensor by = batch.dim == 0 ? d : d.movedim(batch.dim, 0);
    at::Tensor shape = batch.dim == 0 ? argument : argument.movedim(batch.dim, 0);
    std::vector<int64_t> repeated;
    for (int64_t i = 1; i < by.dim(); ++i) {
      if (shape.size(i) == 1 && by.size(i) != 1) repeated.push_back(i);
    }
    if (!repeated.empty()) by = by.sum(repeated, true);
    std::vector<int64_t> sizes = argument.sizes().vec();
    sizes.insert(sizes.begin(), batch.size);
    return from_gradients(by.reshape(sizes), wanted);
  }
  at::Tensor rows = by_example(d, features, batch);
  if (!rows.defined()) return failure("the examples cannot be found in its input");
  rows = rows.sum(1);
  std::vector<int64_t> repeated;
  for (int64_t i = 0; i < features; ++i) {
    if (argument.size(i) == 1 && rows.size(i + 1) != 1) repeated.push_back(i + 1);
  }
  if (!repeated.empty()) rows = rows.sum(repeated, true);
  return from_gradients(rows, wanted);
}

// One slope, or one for each channel, which is the second dimension.
Contribution slope(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                   const Wanted& wanted) {
  const at::Tensor x = widen(use.arguments[0].toTensor());
  at::Tensor shape = use.argument;
  if (shape.numel() > 1) {
    std::vector<int64_t> sizes(static_cast<size_t>(x.dim() > 1 ? x.dim() - 1 : 1), 1);
    sizes[0] = shape.numel();
    shape = shape.reshape(sizes);
  }
  const Contribution found =
      broadcast(shape, x.clamp_max(0), output_gradient, batch, {true, nullptr});
  if (!found.why_not.empty()) return found;
  std::vector<int64_t> sizes = use.argument.sizes().vec();
  sizes.insert(sizes.begin(), batch.size);
  return from_gradients(found.per_example.reshape(sizes), wanted);
}

}  // namespace tycho::per_example
