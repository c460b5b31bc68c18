#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "tycho/probe.h"

namespace tycho {

/// By channel of a member of a symmetry group: sums over all else of w^2, w g and g^2.
struct ChannelSums {
  at::Tensor ww;  ///< float64 [channels], as wg and gg
  at::Tensor wg;
  at::Tensor gg;
};

/// In float64, in one pass without a copy. None where the tensors are not float or double on the
/// CPU and contiguous, or where the channels do not lie side by side. `w` and `g` have the shape of
/// the parameter. The order of summation does not depend on the number of threads.
std::optional<ChannelSums> channel_sums(const at::Tensor& w, const at::Tensor& g,
                                        const SymmetryMember& member);

}  // namespace tycho
