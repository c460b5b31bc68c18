#include "curvature/kept_tensor.h"

#include <ATen/ATen.h>

#include <cstring>

namespace tycho {

KeptTensor::KeptTensor(const at::Tensor& tensor)
    : tensor_(tensor),
      place_(tensor.variable_data()),
      values_(tensor.detach().clone()),
      requires_grad_(tensor.requires_grad()),
      leaf_(tensor.is_leaf()) {
  dense_ = tensor.layout() == at::kStrided && tensor.is_cpu() &&
           tensor.is_non_overlapping_and_dense() && values_.strides() == tensor.strides();
}

/// Whether the tensor stands for other memory now, as after set_data or resize_.
bool KeptTensor::moved() const {
  if (tensor_.layout() != place_.layout()) return true;
  if (tensor_.layout() != at::kStrided || !tensor_.has_storage()) return false;
  return tensor_.storage().unsafeGetStorageImpl() != place_.storage().unsafeGetStorageImpl() ||
         tensor_.storage_offset() != place_.storage_offset() ||
         tensor_.scalar_type() != place_.scalar_type() || tensor_.sizes() != place_.sizes() ||
         tensor_.strides() != place_.strides();
}

void KeptTensor::put_back(const at::Tensor& values) const {
  if (leaf_ && !tensor_.is_leaf()) tensor_.detach_();
  if (moved()) tensor_.set_data(place_);
  if (tensor_.requires_grad() != requires_grad_) tensor_.set_requires_grad(requires_grad_);
  if (!dense_) {
    place_.copy_(values);
    return;
  }
  const size_t bytes = static_cast<size_t>(values.numel()) * values.element_size();
  // Most are as they were: reading costs less than writing.
  if (bytes > 0 && std::memcmp(place_.data_ptr(), values.data_ptr(), bytes) != 0) {
    std::memcpy(place_.data_ptr(), values.data_ptr(), bytes);
  }
}

}  // namespace tycho
