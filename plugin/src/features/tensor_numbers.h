#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <unordered_map>

namespace tycho {

/// Numbers given to tensors, by identity: another tensor over the same memory has none. Keeps the
/// memory of no tensor; a tensor that is gone takes its number with it, and its address is not used
/// again while it stands here. O(1) each.
class TensorNumbers {
 public:
  /// In place of the number that the tensor had.
  void set(const at::Tensor& tensor, size_t number) {
    numbers_.insert_or_assign(tensor.unsafeGetTensorImpl(),
                              Entry{Weak(tensor.getIntrusivePtr()), number});
  }
  std::optional<size_t> find(const at::Tensor& tensor) const {
    const auto found = numbers_.find(tensor.unsafeGetTensorImpl());
    if (found == numbers_.end() || found->second.tensor.expired()) return std::nullopt;
    return found->second.number;
  }
  bool empty() const { return numbers_.empty(); }
  void clear() { numbers_.clear(); }

 private:
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  struct Entry {
    Weak tensor;
    size_t number;
  };
  std::unordered_map<const c10::TensorImpl*, Entry> numbers_;
};

}  // namespace tycho
