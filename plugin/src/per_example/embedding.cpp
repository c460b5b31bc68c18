#include <ATen/ATen.h>

#include "per_example.h"

namespace tycho::per_example {

// Row v of the gradient of example i is the sum of d_it over the positions t with index v; its
// squared norm is the sum of d_t . d_t' over pairs of positions with the same index. Positions with
// padding_idx get no gradient.
Contribution embedding(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                       const Wanted& wanted) {
  const at::Tensor indices = by_example(use.arguments[1].toTensor(), 0, batch);
  const at::Tensor d = by_example(widen(output_gradient), 1, batch);
  if (!indices.defined() || !d.defined() || d.size(1) != indices.size(1)) {
    return failure("the examples cannot be found in its input");
  }
  return looked_up(use, indices, d, wanted);
}

// Indices [b, t] and gradients of what was found there [b, t, features].
Contribution looked_up(const Use& use, const at::Tensor& indices, at::Tensor d,
                       const Wanted& wanted) {
  const int64_t padding = use.arguments[2].toInt();
  const int64_t examples = indices.size(0);
  if (padding >= 0) d = d.masked_fill(indices.eq(padding).unsqueeze(2), 0);
  if (wanted.materialise) {
    const int64_t rows = use.argument.size(0);
    const at::Tensor example = at::arange(examples, indices.options()).unsqueeze(1).mul(rows);
    at::Tensor gradients = at::zeros({examples * rows, d.size(2)}, d.options());
    gradients.index_add_(0, (indices + example).reshape({-1}), d.reshape({-1, d.size(2)}));
    return from_gradients(gradients.reshape({examples, rows, d.size(2)}), wanted);
  }
  Contribution result;
  const at::Tensor same = indices.unsqueeze(1).eq(indices.unsqueeze(2));
  result.norm_sq = at::bmm(d, d.transpose(1, 2)).mul_(same).sum({1, 2}, false, at::kDouble);
  if (wanted.projection != nullptr) {
    const at::Tensor left = wanted.projection->left.to(d.scalar_type()).index({indices});
    const at::Tensor right = at::matmul(d, wanted.projection->right.to(d.scalar_type()));
    result.projected = (left * right).sum(at::kDouble);
  }
  return result;
}

// A bag is the sum or the mean of its rows: each gets the bag's gradient, or its share.
Contribution embedding_bag(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                           const Wanted& wanted) {
  const at::Tensor indices = use.arguments[1].toTensor().reshape({-1}).to(at::kLong);
  const at::Tensor offsets = use.arguments[2].toTensor().to(at::kLong);
  at::Tensor d = widen(output_gradient);
  const int64_t bags = d.size(0);
  const int64_t padding =
      use.arguments.size() > 8 && use.arguments[8].isInt() ? use.arguments[8].toInt() : -1;
  if (padding >= 0) return failure("bags with padding are not known");
  const at::Tensor starts = offsets.slice(0, 0, bags);
  const at::Tensor ends =
      at::cat({starts.slice(0, 1), at::full({1}, indices.numel(), starts.options())});
  const at::Tensor lengths = ends - starts;
  if (use.arguments[4].toInt() == 1) d = d / lengths.clamp_min(1).unsqueeze(1);
  // Each bag has as many places as the longest; the rest gets no gradient.
  const int64_t longest = std::max<int64_t>(1, lengths.max().item<int64_t>());
  const at::Tensor place = at::arange(longest, starts.options());
  const at::Tensor used = place.unsqueeze(0).lt(lengths.unsqueeze(1));
  const at::Tensor where = (starts.unsqueeze(1) + place.unsqueeze(0))
                               .clamp(0, std::max<int64_t>(0, indices.numel() - 1));
  const at::Tensor found = group_rows(indices.index({where}).mul(used), batch);
  const at::Tensor shares = group_rows(d.unsqueeze(1) * used.unsqueeze(2), batch);
  if (!found.defined() || !shares.defined()) {
    return failure("the examples cannot be found in its input");
  }
  Use rows = use;
  rows.arguments[2] = static_cast<int64_t>(-1);  // padding, in the places of an embedding
  return looked_up(rows, found.reshape({batch.size, -1}),
                   shares.reshape({batch.size, -1, d.size(1)}), wanted);
}

}  // namespace tycho::per_example
