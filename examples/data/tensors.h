#pragma once

#include <torch/torch.h>

#include "data/image_set.h"

namespace tycho::examples {

/// The images as float [n, 1, rows, columns].
inline torch::Tensor image_tensor(const ImageSet& set) {
  return torch::tensor(set.pixels).view({set.size(), 1, set.rows, set.columns});
}

/// The labels as int64 [n].
inline torch::Tensor label_tensor(const ImageSet& set) { return torch::tensor(set.labels); }

/// The share of rows of `logits` [n, classes] whose largest entry is at the label.
inline double accuracy(const torch::Tensor& logits, const torch::Tensor& labels) {
  return logits.argmax(1).eq(labels).to(torch::kFloat64).mean().item<double>();
}

}  // namespace tycho::examples
