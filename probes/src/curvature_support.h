#pragma once

#include <ATen/core/Generator.h>

#include <string>
#include <utility>
#include <vector>

#include "tycho/krylov.h"
#include "tycho/loss_surface.h"
#include "tycho/probe.h"

namespace tycho {

/// Numbers by parameter and their sums by layer.
struct ByParameter {
  std::vector<std::pair<uint32_t, double>> parameters;  ///< (id, value), ascending
  std::vector<std::pair<uint32_t, double>> layers;

  void record(const std::string& statistic, Recorder& recorder) const;
};

/// sum of left * right over each selected parameter's entries, in float64.
ByParameter inner_products(const LossSurface& surface, const ModelInfo& model,
                           const at::Tensor& left, const at::Tensor& right);

double inner_product(const at::Tensor& left, const at::Tensor& right);

/// Random numbers of Tycho's own, the same whenever the run is repeated.
at::Generator own_generator(const StepView& step, uint64_t stream);

/// Independent standard normal, or +-1 with equal probability.
at::Tensor normal_vector(const LossSurface& surface, at::Generator generator);
at::Tensor sign_vector(const LossSurface& surface, at::Generator generator);

/// Largest eigenvalues of a matrix that changes little from one observation to the next.
class WarmLanczos {
 public:
  /// `stream` tells the random numbers of different users apart. The first time, every 16th after
  /// it, in few dimensions, and when the value moved or the vector turned, bounds hold whatever the
  /// matrix; in between they rest on the directions that led so far, with a small random part.
  Eigenpairs largest(const LinearMap& matrix, int64_t dimension, const at::TensorOptions& vectors,
                     const EigenOptions& options, const StepView& step, uint64_t stream);
  /// Directions that the next run starts near; undefined before the first.
  const at::Tensor& leading() const { return leading_; }

 private:
  at::Tensor leading_;
  double last_value_ = 0;
  int64_t observations_ = 0;
};

}  // namespace tycho
