#pragma once

#include <ATen/core/Tensor.h>

namespace tycho {

/// A tensor of the trainer's, a parameter or a buffer, as it has to be after others used it:
/// memory, shape, values, and whether it asks for gradients. All memory that putting it back takes
/// is allocated here, by the constructor, which changes nothing. Training thread only.
class KeptTensor {
 public:
  /// One copy of the values. `tensor` is defined; throws where memory is out.
  explicit KeptTensor(const at::Tensor& tensor);

  const at::Tensor& tensor() const { return tensor_; }
  /// The kept memory, past the version counter, which graphs look at.
  const at::Tensor& place() const { return place_; }
  /// The values at construction.
  const at::Tensor& values() const { return values_; }

  /// Puts back what differs, with `values` for values (of the kept type and shape); whoever writes
  /// past the version counter is found too on the CPU. Allocates nothing for dense tensors on the
  /// CPU whose memory was not replaced; elsewhere it may throw. One pass over the memory.
  void put_back(const at::Tensor& values) const;
  void put_back() const { put_back(values_); }

 private:
  bool moved() const;

  at::Tensor tensor_;
  at::Tensor place_;
  at::Tensor values_;
  bool dense_ = false;  // on the CPU, values laid out alike
  bool requires_grad_ = false;
  bool leaf_ = true;
};

}  // namespace tycho
