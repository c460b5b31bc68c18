#pragma once

#include <ATen/core/ivalue.h>

#include <optional>
#include <string_view>

#include "tycho/probe.h"

namespace tycho {

/// How operator `name`, for example aten::conv2d, applies its second argument as a kernel to its
/// first. nullopt: it is no convolution, or one with arguments that are not known here.
std::optional<ConvolutionGeometry> convolution_geometry(std::string_view name,
                                                        c10::ArrayRef<const c10::IValue> inputs);

}  // namespace tycho
