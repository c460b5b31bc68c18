#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "features/kernel_use_recorder.h"
#include "features/pass_memory.h"
#include "per_example/per_example.h"
#include "tycho/feature_pass.h"
#include "tycho/probe.h"

namespace tycho {

/// Makes one tangent kernel, see FeaturePass::tangent_kernel, from what was recorded of one
/// evaluation, whose graph must live: parameter by parameter from products, where the run's checks
/// have not disproved them, else from one backward pass for each example, where these gradients fit
/// into memory. Call it with gradients enabled.
class KernelPass {
 public:
  /// References and `memory` outlive it. `uses`, `batch`: of the evaluation.
  KernelPass(const ModelInfo& model, const std::vector<KernelUse>& uses,
             const per_example::Batch& batch, ProbePassMemory* memory)
      : model_(model), uses_(uses), batch_(batch), memory_(memory) {}

  /// `rows`: [examples, outputs of an example], with the graph. Counts in the memory, which may
  /// learn that products are not a parameter's gradients.
  TangentKernel measure(const at::Tensor& rows, int64_t limit, at::Generator generator);

 private:
  /// By parameter id: float64 [n, n], undefined where `why_not_` says why or it is not used.
  using ByParameter = std::vector<at::Tensor>;
  ByParameter from_products(const at::Tensor& along, int64_t n);
  void check(const at::Tensor& along, int64_t n, const ByParameter& kernels);
  void add_from_gradients(const at::Tensor& along, int64_t n, const std::vector<uint32_t>& of,
                          ByParameter* kernels);
  void sum_up(const ByParameter& kernels, TangentKernel* result) const;

  const ModelInfo& model_;
  const std::vector<KernelUse>& uses_;
  const per_example::Batch& batch_;
  ProbePassMemory* memory_;
  std::vector<std::string> why_not_;  // by parameter id
};

}  // namespace tycho
