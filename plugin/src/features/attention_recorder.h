#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "features/tensor_numbers.h"
#include "tycho/feature_pass.h"

namespace tycho {

/// Finds attention among the operators of an evaluation: the result of a softmax over the last
/// dimension that a matrix product takes first, perhaps after dropout and changes of shape. Scores
/// and weights of a softmax are held until that product, or until they are overwritten in place;
/// the sums over them are made there, on their device. Used by one thread, with gradients disabled.
class AttentionRecorder {
 public:
  /// Before an operator. `layer`: whose linear operator ran last; nullopt: none did, and a softmax
  /// is no attention.
  void before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
              std::optional<uint32_t> layer);
  /// After the operator of the last before().
  void after(const std::vector<c10::IValue>& results);
  /// What was found since the last take(), in the order of the products. Forgets all else.
  std::vector<AttentionUse> take();

 private:
  /// The result of a softmax that may be attention.
  struct Softmax {
    at::Tensor scores, weights;
    uint32_t layer = 0;
  };

  std::vector<AttentionUse> found_;
  std::vector<std::optional<Softmax>> softmaxes_;
  TensorNumbers holds_;              // which of softmaxes_ a tensor holds
  std::optional<Softmax> running_;   // the operator that runs is this one
  std::optional<size_t> passed_on_;  // by the operator that runs: which of softmaxes_
};

}  // namespace tycho
