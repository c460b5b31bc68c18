#include <ATen/ATen.h>

#include "per_example.h"
#include "tensor_sums.h"

namespace tycho::per_example {
namespace {

at::Tensor standardise(const at::Tensor& x, at::IntArrayRef dims, double epsilon) {
  const at::Tensor mean = x.mean(dims, true);
  const at::Tensor variance = (x - mean).square().mean(dims, true);
  return (x - mean) * (variance + epsilon).rsqrt();
}

}  // namespace

// y = gamma * xhat + beta: the gradients of example i are the sums of d * xhat and of d over its
// positions. BatchNorm's statistics couple the examples; what is taken is each example's term of
// the gradient's sum.
Contribution normalization(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                           const Wanted& wanted) {
  const auto& arguments = use.arguments;
  const at::Tensor x = widen(arguments[0].toTensor());
  at::Tensor d = widen(output_gradient);
  const bool layer = use.name == "aten::layer_norm";
  const bool wants_gain = use.position == (layer || use.name == "aten::group_norm" ? 2u : 1u);
  if (layer) {
    const int64_t features = use.argument.dim();
    if (wants_gain) {
      std::vector<int64_t> dims;
      for (int64_t i = 0; i < features; ++i) dims.push_back(x.dim() - features + i);
      d = d * standardise(x, dims, arguments[4].toDouble());
    }
    const at::Tensor rows = by_example(d, features, batch);
    if (!rows.defined()) return failure("the examples cannot be found in its input");
    return from_gradients(rows.sum(1), wanted);
  }
  const bool first = batch.rows ? batch.rows->dim == 0 : x.size(0) == batch.size && batch.dim == 0;
  if (x.dim() < 2 || !first) {
    return failure("the examples are not the first dimension of its input");
  }
  const auto of_rows = [&](const at::Tensor& gradients) {
    const at::Tensor grouped = group_rows(gradients, batch);
    return grouped.defined() ? from_gradients(grouped.sum(1), wanted)
                             : failure("the examples cannot be found in its input");
  };
  // The sum over positions of d xhat is (sum d x - mean sum d) / deviation, by example and channel.
  const int64_t examples = x.size(0);
  const int64_t channels = x.size(1);
  const at::Tensor d_rows = d.reshape({examples * channels, -1});
  const double positions = static_cast<double>(d_rows.size(1));
  if (!wants_gain) {
    return of_rows(row_moments(d_rows).select(1, 0).reshape({examples, channels}));
  }
  const at::Tensor sums = row_cross_moments(d_rows, x.reshape({examples * channels, -1}))
                              .reshape({examples, channels, 4});
  const at::Tensor d_sum = sums.select(2, 0);
  const at::Tensor dx = sums.select(2, 1);
  at::Tensor mean, variance;  // broadcast with [examples, channels]
  double epsilon = 0;
  if (use.name != "aten::group_norm" && !arguments[5].toBool()) {
    epsilon = arguments[7].toDouble();
    mean = arguments[3].toTensor().to(at::kDouble);
    variance = arguments[4].toTensor().to(at::kDouble);
  } else {
    at::Tensor moments = sums.narrow(2, 2, 2) / positions;
    if (use.name == "aten::group_norm") {
      epsilon = arguments[4].toDouble();
      const int64_t groups = arguments[1].toInt();
      moments = moments.reshape({examples, groups, channels / groups, 2})
                    .mean({2}, true)
                    .expand({-1, -1, channels / groups, -1})
                    .reshape({examples, channels, 2});
    } else {
      epsilon = arguments[7].toDouble();
      if (use.name == "aten::batch_norm") moments = moments.mean({0}, true);
    }
    mean = moments.select(2, 0);
    variance = (moments.select(2, 1) - mean.square()).clamp_min(0);
  }
  return of_rows((dx - mean * d_sum) * (variance + epsilon).rsqrt());
}

}  // namespace tycho::per_example
