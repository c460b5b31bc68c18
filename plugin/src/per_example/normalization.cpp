#include <ATen/ATen.h>

#include "per_example.h"

namespace tycho::per_example {
namespace {

at::Tensor standardise(const at::Tensor& x, at::IntArrayRef dims, double epsilon) {
  const at::Tensor mean = x.mean(dims, true);
  const at::Tensor variance = (x - mean).square().mean(dims, true);
  return (x - mean) * (variance + epsilon).rsqrt();
}

at::Tensor per_channel(const at::Tensor& values, int64_t dims) {
  std::vector<int64_t> shape(static_cast<size_t>(dims), 1);
  shape[1] = values.numel();
  return values.reshape(shape);
}

}  // namespace

// y = gamma * xhat + beta: the gradients of example i are the sums of d * xhat and of d over its
// positions. BatchNorm's statistics couple the examples; what is taken is each example's term of
// the gradient's sum.
Contribution normalization(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                           bool materialise) {
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
    return from_gradients(rows.sum(1), materialise);
  }
  if (x.dim() < 2 || x.size(0) != batch.size || batch.dim != 0) {
    return failure("the examples are not the first dimension of its input");
  }
  if (wants_gain) {
    std::vector<int64_t> spatial;
    for (int64_t i = 2; i < x.dim(); ++i) spatial.push_back(i);
    if (use.name == "aten::group_norm") {
      const int64_t groups = arguments[1].toInt();
      d = d * standardise(x.reshape({x.size(0), groups, -1}), {2}, arguments[4].toDouble())
                  .reshape(x.sizes());
    } else {
      const bool own_statistics = arguments[5].toBool();
      const double epsilon = arguments[7].toDouble();
      if (!own_statistics) {
        const at::Tensor mean = per_channel(widen(arguments[3].toTensor()), x.dim());
        const at::Tensor variance = per_channel(widen(arguments[4].toTensor()), x.dim());
        d = d * ((x - mean) * (variance + epsilon).rsqrt());
      } else if (use.name == "aten::instance_norm") {
        d = d * standardise(x, spatial, epsilon);
      } else {
        std::vector<int64_t> dims = spatial;
        dims.insert(dims.begin(), 0);
        d = d * standardise(x, dims, epsilon);
      }
    }
  }
  return from_gradients(d.reshape({d.size(0), d.size(1), -1}).sum(2), materialise);
}

}  // namespace tycho::per_example
