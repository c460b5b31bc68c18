#include "curvature/product_proof.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "curvature/freed_memory.h"
#include "tensor_sums.h"

namespace tycho {
namespace {

double product_of(const at::Tensor& left, const at::Tensor& right) {
  return at::dot(left.to(at::kDouble), right.to(at::kDouble)).item<double>();
}

at::Tensor direction(const ProductTrial& trial, at::Generator generator) {
  const LossSurface::Block& last = trial.blocks->back();
  return at::randn({last.begin + last.size}, generator, at::TensorOptions()).to(trial.options);
}

std::vector<double> scales_of(const ProductTrial& trial) {
  if (trial.wide) return {1, 0.1, 0.01};
  return {10, 3, 1};
}

at::Tensor part(const at::Tensor& vector, const LossSurface::Block& block) {
  return vector.narrow(0, block.begin, block.size);
}

struct Tolerances {
  double symmetric, near, floor;
  explicit Tolerances(const ProductTrial& trial)
      : symmetric(trial.wide ? 1e-8 : 1e-3),
        near(trial.wide      ? 1e-5
             : trial.foreign ? 1e-2
                             : 0.3),
        floor(trial.wide ? 1e-14 : 1e-6) {}
};

/// One parameter's part of H v against differences at several scales, coarse to fine.
struct Comparison {
  bool agrees = false;
  bool refuted = false;
  double distance = std::numeric_limits<double>::infinity();  // from the nearest
};

Comparison compare(const at::Tensor& exact, const std::vector<at::Tensor>& differences,
                   const LossSurface::Block& block, double floor, double near) {
  const at::Tensor mine = part(exact, block);
  std::vector<double> distances, lengths;
  Comparison result;
  for (const at::Tensor& difference : differences) {
    const at::Tensor theirs = part(difference, block);
    distances.push_back(norm_of(theirs - mine));
    lengths.push_back(std::max(norm_of(theirs), norm_of(mine)));
    result.distance = std::min(result.distance, distances.back());
    result.agrees = result.agrees || distances.back() <= near * lengths.back() + floor;
  }
  constexpr double kAmongThemselves = 0.1;
  for (size_t k = 0; !result.agrees && k + 1 < differences.size(); ++k) {
    const double apart = norm_of(part(differences[k], block) - part(differences[k + 1], block));
    result.refuted =
        result.refuted || apart <= kAmongThemselves * std::min(distances[k], distances[k + 1]);
  }
  return result;
}

}  // namespace

void poison_free_memory(const at::TensorOptions& options) {
  constexpr int64_t kLargest = int64_t{1} << 20;
  constexpr int kEach = 3;
  constexpr int64_t kLeast = int64_t{1} << 20;  // should the count be another allocator's
  int64_t left = options.device().is_cpu() ? std::max(free_bytes(), kLeast)
                                           : std::numeric_limits<int64_t>::max();
  std::vector<at::Tensor> filled;
  for (int64_t size = 16; size <= kLargest; size *= 2) {
    for (int i = 0; i < kEach; ++i) {
      left -= size * static_cast<int64_t>(sizeof(float));
      if (left < 0) return;
      filled.push_back(
          at::full({size}, std::numeric_limits<double>::quiet_NaN(), options.dtype(at::kFloat)));
    }
  }
}

bool is_repeated(const at::Tensor& once, const at::Tensor& twice,
                 const std::vector<LossSurface::Block>& blocks, bool wide) {
  const double allowed = wide ? 1e-9 : 1e-4;
  const double length = norm_of(once);
  for (const LossSurface::Block& block : blocks) {
    const double apart = norm_of(part(once, block) - part(twice, block));
    if (!(apart <= allowed * (norm_of(part(once, block)) + 1e-3 * length))) return false;
  }
  return true;
}

ProductVerdict prove_products(const ProductTrial& trial) {
  const Tolerances allowed(trial);
  const at::Generator generator = at::detail::createCPUGenerator(trial.seed);
  const at::Tensor v = direction(trial, generator);
  const at::Tensor u = direction(trial, generator);
  poison_free_memory(trial.options);
  const at::Tensor once = trial.product(v);
  poison_free_memory(trial.options);
  const at::Tensor twice = trial.product(v);
  const double length = norm_of(once);
  ProductVerdict verdict;
  const auto refute = [&](double error, std::string why) {
    verdict = {ProductVerdict::kRefuted, std::move(why), error};
  };

  std::vector<at::Tensor> differences;
  for (const double scale : scales_of(trial)) differences.push_back(trial.difference(v, scale));
  if (!std::isfinite(length) || !std::isfinite(norm_of(twice))) {
    // Where differences are not finite either it is the loss that has no second derivative here.
    const double fine = norm_of(differences.back());
    if (std::isfinite(fine) && norm_of(differences[1] - differences.back()) < 0.1 * fine) {
      refute(fine, "second derivatives are not finite where differences of first ones are");
    }
    return verdict;
  }
  const double repeated = norm_of(once - twice) / std::max(length, 1e-300);
  if (!is_repeated(once, twice, *trial.blocks, trial.wide)) {
    refute(repeated, fmt::format("two products with the same vector differ by {:.1e}", repeated));
    return verdict;
  }
  const at::Tensor other = trial.product(u);
  const double sizes = length + norm_of(other);
  const double asymmetric =
      sizes > 0 ? std::abs(product_of(u, once) - product_of(v, other)) / sizes : 0;
  if (!(asymmetric <= allowed.symmetric)) {
    refute(asymmetric,
           fmt::format("products are not those of a symmetric matrix ({:.1e})", asymmetric));
    return verdict;
  }
  double undecided = 0;
  for (const LossSurface::Block& block : *trial.blocks) {
    const Comparison found =
        compare(once, differences, block, allowed.floor * length, allowed.near);
    if (found.refuted) {
      refute(found.distance / std::max(length, 1e-300),
             "second derivatives differ from differences of first ones");
      return verdict;
    }
    if (!found.agrees) undecided = std::hypot(undecided, found.distance);
  }
  verdict.error = length > 0 ? std::max(repeated, asymmetric) : 0;
  if (trial.foreign && undecided > 0) {
    verdict.kind = ProductVerdict::kUndecided;
    verdict.error = std::max(verdict.error, undecided / std::max(length, 1e-300));
  }
  return verdict;
}

DifferenceQuality assess_differences(const ProductTrial& trial) {
  const at::Generator generator = at::detail::createCPUGenerator(trial.seed + 1);
  const at::Tensor v = direction(trial, generator);
  const at::Tensor u = direction(trial, generator);
  const std::vector<double> scales = scales_of(trial);
  std::vector<at::Tensor> differences;
  for (const double scale : scales) differences.push_back(trial.difference(v, scale));
  DifferenceQuality quality;
  quality.error = std::numeric_limits<double>::infinity();
  size_t best = 0;
  for (size_t k = 0; k + 1 < scales.size(); ++k) {
    const double length = norm_of(differences[k + 1]);
    const double apart = norm_of(differences[k] - differences[k + 1]);
    const double error = length > 0 ? apart / length : apart;
    if (!(error < quality.error)) continue;
    quality.error = error;
    best = k;
  }
  quality.scale = scales[best];
  const at::Tensor other = trial.difference(u, quality.scale);
  const double sizes = norm_of(differences[best]) + norm_of(other);
  if (sizes > 0) {
    quality.asymmetry = std::abs(product_of(u, differences[best]) - product_of(v, other)) / sizes;
  }
  return quality;
}

}  // namespace tycho
