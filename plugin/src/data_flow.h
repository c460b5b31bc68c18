#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <functional>
#include <string_view>
#include <unordered_map>

namespace tycho {

/// Follows, operator by operator, which tensors hold something of the examples.
class DataFlow {
 public:
  /// `is_parameter`: whether a tensor shares storage with a parameter.
  explicit DataFlow(std::function<bool(const at::Tensor&)> is_parameter)
      : is_parameter_(std::move(is_parameter)) {}

  /// Before an operator. True: the examples may lie elsewhere, or in another order, after it.
  /// `before_model`: nothing has used a parameter yet, so the batch is still being put together.
  bool before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs, int64_t batch_dim,
              bool before_model);
  /// After the operator of the last before().
  void after(const std::vector<c10::IValue>& results);
  void clear() { constants_.clear(); }

  /// Whether a tensor can hold something of the examples: it is no parameter, and does not come
  /// from operators that read no data (positions, masks).
  bool carries(const at::Tensor& tensor) const;

 private:
  bool is_constant(const at::Tensor& tensor) const;
  bool carries_data(const at::Tensor& tensor) const;
  void note(const at::Tensor& output);

  std::function<bool(const at::Tensor&)> is_parameter_;
  // Storages that hold nothing of the examples. Weak, so that an address that is used again is not
  // mistaken.
  std::unordered_map<const c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> constants_;
  bool output_is_constant_ = false;  // of the operator that runs
};

}  // namespace tycho
