#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// Tells which parameter a tensor is, or is a view of: the one whose memory holds all of the
/// tensor's elements. Storages are looked up by address, and never trusted blindly: a parameter
/// gets another storage when a checkpoint is loaded into it, when the model moves to another device
/// or dtype, and with set_data(). What was replaced is noticed at the look-up, and all is read
/// anew; an address is not used again while it is in the map. Parameters may share a storage, as
/// views of one flat vector do.
///
/// A look-up costs two hash look-ups. Of one thread at a time.
class ParameterMap {
 public:
  explicit ParameterMap(const ModelInfo& model);

  /// The parameter that `tensor` is or is a view of; nullopt: none, or the tensor covers more than
  /// one. Of parameters over the same memory, the first.
  std::optional<uint32_t> find(const at::Tensor& tensor);
  /// Whether `tensor` shares memory with any parameter.
  bool touches(const at::Tensor& tensor);
  /// Parameters that share memory with `tensor`, ascending.
  std::vector<uint32_t> all(const at::Tensor& tensor);
  /// Whether the stretches of memory of this parameter and of another overlap: what an operator
  /// does with one cannot be told from what it does with the other.
  bool overlaps_another(uint32_t parameter);

 private:
  /// In bytes from the beginning of the storage.
  struct Extent {
    uint32_t parameter = 0;
    int64_t begin = 0;
    int64_t end = 0;
  };
  using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;
  struct Shared {
    WeakStorage storage;  // keeps the address from being used again, and no memory
    std::vector<Extent> extents;
  };

  static Extent extent_of(const at::Tensor& tensor, uint32_t parameter);
  void read();
  /// Those in the tensor's storage as it is now; nullptr: none.
  const Shared* shared_with(const at::Tensor& tensor);

  std::vector<at::Tensor> parameters_;
  std::unordered_map<const c10::TensorImpl*, uint32_t> by_tensor_;
  std::unordered_map<const c10::StorageImpl*, Shared> by_storage_;
  std::vector<bool> overlaps_;
};

}  // namespace tycho
