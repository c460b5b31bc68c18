#include "curvature_support.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <map>

namespace tycho {

void ByParameter::record(const std::string& statistic, Recorder& recorder) const {
  for (const auto& [id, value] : parameters) {
    recorder.parameter(statistic, id, value, Recorder::kUnknown);
  }
  for (const auto& [id, value] : layers) recorder.layer(statistic, id, value, Recorder::kUnknown);
}

double inner_product(const at::Tensor& left, const at::Tensor& right) {
  return (left * right).sum(at::kDouble).item<double>();
}

ByParameter inner_products(const LossSurface& surface, const ModelInfo& model,
                           const at::Tensor& left, const at::Tensor& right) {
  const at::Tensor products = left * right;
  std::vector<at::Tensor> sums;
  std::vector<uint32_t> ids;
  for (const LossSurface::Block& block : surface.blocks()) {
    if (block.parameter == LossSurface::kNoParameter) continue;
    sums.push_back(products.narrow(0, block.begin, block.size).sum(at::kDouble));
    ids.push_back(block.parameter);
  }
  ByParameter result;
  if (ids.empty()) return result;
  const at::Tensor host = at::stack(sums).to(at::kCPU);
  std::map<uint32_t, double> layers;
  for (size_t i = 0; i < ids.size(); ++i) {
    const double value = host.data_ptr<double>()[i];
    result.parameters.emplace_back(ids[i], value);
    layers[model.parameters[ids[i]].layer] += value;
  }
  result.layers.assign(layers.begin(), layers.end());
  return result;
}

at::Generator own_generator(const StepView& step, uint64_t stream) {
  // Far apart for neighbouring steps and streams (splitmix64's increments).
  const uint64_t seed = step.seed + 0x9e3779b97f4a7c15ULL * (static_cast<uint64_t>(step.step) + 1) +
                        0xbf58476d1ce4e5b9ULL * stream;
  return at::detail::createCPUGenerator(seed);
}

at::Tensor normal_vector(const LossSurface& surface, at::Generator generator) {
  return at::randn({surface.dimension()}, generator, at::TensorOptions()).to(surface.options());
}

at::Tensor sign_vector(const LossSurface& surface, at::Generator generator) {
  return at::randint(0, 2, {surface.dimension()}, generator, at::TensorOptions().dtype(at::kFloat))
      .mul_(2)
      .sub_(1)
      .to(surface.options());
}

Eigenpairs WarmLanczos::largest(const LinearMap& matrix, int64_t dimension,
                                const at::TensorOptions& vectors, const EigenOptions& options,
                                const StepView& step, uint64_t stream) {
  constexpr int64_t kSureEvery = 16;
  constexpr int64_t kSmall = 4096;  // dimensions in which being sure costs little
  constexpr double kSmallPart = 0.1;
  constexpr double kOnly = 1e3;
  const at::Generator generator = own_generator(step, stream);
  at::Tensor start = at::randn({dimension}, generator, at::TensorOptions()).to(vectors);
  start.div_(start.norm(2, at::kDouble).to(start.scalar_type()));
  const bool known = leading_.defined() && leading_.size(1) == dimension;
  const bool sure = !known || observations_ % kSureEvery == 0 || dimension <= kSmall;
  EigenOptions with_bounds = options;
  with_bounds.random_part = !known ? kOnly : sure ? 1 : kSmallPart;
  if (known) {
    // Those that were just below may have overtaken the others.
    at::Tensor weights = at::ones({leading_.size(0)}, vectors);
    for (int64_t i = options.count; i < leading_.size(0); ++i) {
      weights[i] = std::pow(0.3, i - options.count + 1);
    }
    const at::Tensor warm = at::mv(leading_.t(), weights / weights.norm());
    const double along = inner_product(warm, start);
    if (!(along >= 0)) start.neg_();  // in one dimension they would cancel
    start = warm + (sure ? start : start * kSmallPart);
  }
  if (!sure) {
    with_bounds.expected = last_value_;
    with_bounds.expected_directions = leading_;
  }
  Eigenpairs found = largest_eigenpairs(matrix, start, with_bounds, generator);
  if (found.finite) {
    leading_ = found.leading;
    last_value_ = found.values[0];
    ++observations_;
  }
  return found;
}

}  // namespace tycho
