#include "feature_support.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace tycho {

std::map<uint32_t, std::vector<LayerUse>> uses_by_layer(FeaturePass& pass) {
  std::map<uint32_t, std::vector<LayerUse>> layers;
  for (const LayerUse& use : pass.uses()) layers[use.layer].push_back(use);
  return layers;
}

at::Tensor square_sum(const at::Tensor& x) {
  const at::Tensor flat = x.reshape({-1});
  const bool narrow = x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble;
  if (!x.device().is_cpu() || narrow) return flat.to(at::kDouble).square().sum();
  // A single-precision product of a long vector with itself loses digits; one in blocks does not.
  constexpr int64_t kBlock = 1 << 14;
  if (flat.numel() <= kBlock || x.scalar_type() == at::kDouble) {
    return at::dot(flat, flat).to(at::kDouble);
  }
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < flat.numel(); begin += kBlock) {
    const at::Tensor block = flat.narrow(0, begin, std::min(kBlock, flat.numel() - begin));
    parts.push_back(at::dot(block, block));
  }
  return at::stack(parts).sum(at::kDouble);
}

at::Tensor own(const at::Tensor& tensor) {
  return tensor.storage().use_count() > 1 ? tensor.clone() : tensor;
}

void say_reference(int64_t step, Recorder& recorder) {
  recorder.event(v1::Event::METHOD, "features_reference",
                 "what is said to have changed is compared with step " + std::to_string(step) +
                     ", the first at which this session observed it",
                 v1::SCOPE_RUN, 0);
}

void say_shape_changed(uint32_t layer, Recorder& recorder) {
  recorder.event(v1::Event::NOT_OBSERVED, "features_shape_changed",
                 "the layer is not used as it was at the first observation: its changes are not "
                 "recorded",
                 v1::SCOPE_LAYER, layer);
}

}  // namespace tycho
