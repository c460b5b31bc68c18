#include "parameter_map.h"

#include <algorithm>

namespace tycho {

ParameterMap::ParameterMap(const ModelInfo& model) {
  parameters_.resize(model.parameters.size());
  for (const ParameterInfo& parameter : model.parameters) {
    parameters_[parameter.id] = parameter.tensor;
    by_tensor_.emplace(parameter.tensor.unsafeGetTensorImpl(), parameter.id);
  }
  read();
}

ParameterMap::Extent ParameterMap::extent_of(const at::Tensor& tensor, uint32_t parameter) {
  const auto size = static_cast<int64_t>(tensor.element_size());
  Extent extent;
  extent.parameter = parameter;
  extent.begin = tensor.storage_offset() * size;
  extent.end = extent.begin;
  if (tensor.numel() == 0) return extent;
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  extent.end += (last + 1) * size;
  return extent;
}

void ParameterMap::read() {
  by_storage_.clear();
  overlaps_.assign(parameters_.size(), false);
  for (uint32_t id = 0; id < parameters_.size(); ++id) {
    const at::Tensor& parameter = parameters_[id];
    if (!parameter.has_storage()) continue;
    const auto* storage = parameter.storage().unsafeGetStorageImpl();
    auto found = by_storage_.find(storage);
    if (found == by_storage_.end()) {
      found =
          by_storage_.emplace(storage, Shared{parameter.storage().getWeakStorageImpl(), {}}).first;
    }
    const Extent extent = extent_of(parameter, id);
    for (const Extent& other : found->second.extents) {
      if (extent.begin >= other.end || other.begin >= extent.end) continue;
      overlaps_[id] = overlaps_[other.parameter] = true;
    }
    found->second.extents.push_back(extent);
  }
}

const ParameterMap::Shared* ParameterMap::shared_with(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return nullptr;
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  auto found = by_storage_.find(storage);
  bool current = true;
  if (found == by_storage_.end()) {
    // A parameter that has another storage by now is noticed when it is used itself: a view of it
    // is made of it first.
    current = by_tensor_.count(tensor.unsafeGetTensorImpl()) == 0;
  } else {
    for (const Extent& extent : found->second.extents) {
      const at::Tensor& parameter = parameters_[extent.parameter];
      current = current && parameter.has_storage() &&
                parameter.storage().unsafeGetStorageImpl() == storage &&
                extent_of(parameter, extent.parameter).begin == extent.begin &&
                extent_of(parameter, extent.parameter).end == extent.end;
    }
  }
  if (!current) {
    read();
    found = by_storage_.find(storage);
  }
  return found == by_storage_.end() ? nullptr : &found->second;
}

std::optional<uint32_t> ParameterMap::find(const at::Tensor& tensor) {
  const Shared* shared = shared_with(tensor);
  if (shared == nullptr) return std::nullopt;
  // Of parameters over the same memory the one that the tensor is itself comes first.
  const auto own = by_tensor_.find(tensor.unsafeGetTensorImpl());
  if (own != by_tensor_.end()) return own->second;
  const Extent of = extent_of(tensor, 0);
  for (const Extent& extent : shared->extents) {
    if (extent.begin <= of.begin && of.end <= extent.end) return extent.parameter;
  }
  return std::nullopt;
}

bool ParameterMap::touches(const at::Tensor& tensor) { return !all(tensor).empty(); }

std::vector<uint32_t> ParameterMap::all(const at::Tensor& tensor) {
  std::vector<uint32_t> result;
  const Shared* shared = shared_with(tensor);
  if (shared == nullptr) return result;
  const Extent of = extent_of(tensor, 0);
  for (const Extent& extent : shared->extents) {
    if (extent.begin < of.end && of.begin < extent.end) result.push_back(extent.parameter);
  }
  return result;
}

bool ParameterMap::overlaps_another(uint32_t parameter) { return overlaps_[parameter]; }

}  // namespace tycho
