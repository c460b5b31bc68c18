#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "tycho/feature_pass.h"
#include "tycho/probe.h"

namespace tycho {

/// The uses of each layer in a pass, in order.
std::map<uint32_t, std::vector<LayerUse>> uses_by_layer(FeaturePass& pass);

/// |x|^2 as a float64 scalar tensor on the tensor's device.
at::Tensor square_sum(const at::Tensor& x);

/// A tensor to be kept beyond the step: itself where nobody else holds its memory, else a copy.
at::Tensor own(const at::Tensor& tensor);

/// Says, at the first observation, which step later ones are compared with.
void say_reference(int64_t step, Recorder& recorder);

/// Says that a layer's output has another shape than at the first observation.
void say_shape_changed(uint32_t layer, Recorder& recorder);

}  // namespace tycho
