#pragma once

// Everything that differs between the supported LibTorch versions.

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/optim/optimizer.h>
#include <torch/version.h>

#include <memory>

namespace tycho::compat {

/// Whether hooks change a parameter's gradient after the accumulator's own hooks have seen it: with
/// Tensor::register_hook, before version 2.
inline bool has_late_hooks([[maybe_unused]] const at::Tensor& parameter) {
#if TORCH_VERSION_MAJOR >= 2
  return false;
#else
  return !torch::autograd::impl::hooks(parameter).empty();
#endif
}

/// Totals in c10::MemoryReportingInfoBase::reportMemoryUsage.
#if TORCH_VERSION_MAJOR >= 2
using MemoryTotal = size_t;
#else
using MemoryTotal = int64_t;
#endif

/// Tells whether a node of the autograd graph still lives, without keeping it.
using WeakNode = std::weak_ptr<torch::autograd::Node>;

/// The optimizer's state of a parameter; nullptr before its first step.
inline const torch::optim::OptimizerParamState* optimizer_state(
    const torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
#if TORCH_VERSION_MAJOR >= 2
  const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
#else
  const auto found = optimizer.state().find(c10::guts::to_string(parameter.unsafeGetTensorImpl()));
#endif
  return found == optimizer.state().end() ? nullptr : found->second.get();
}

}  // namespace tycho::compat
