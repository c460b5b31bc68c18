#pragma once

// Everything that differs between the supported LibTorch versions.

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/optim/optimizer.h>
#include <torch/version.h>

namespace tycho::compat {

/// shared_ptr in the supported versions, intrusive_ptr in later ones.
using GradientAccumulator =
    decltype(torch::autograd::impl::grad_accumulator(std::declval<const at::Tensor&>()));

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
