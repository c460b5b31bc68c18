#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace tycho {

/// What one pass leaves to the next ones of the run.
struct ProbePassMemory {
  bool begun = false;
  std::vector<at::Tensor> generators;
  int64_t kernels = 0;           ///< tangent kernels so far
  std::vector<bool> disproved;   ///< by parameter: products do not give its tangent kernel
  std::vector<at::Tensor> data;  ///< float64, see FeaturePass::comparable
};

}  // namespace tycho
