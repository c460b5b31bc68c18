#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/edge.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "features/batch_recorder.h"
#include "features/tensor_numbers.h"
#include "features/watched_call.h"
#include "per_example/per_example.h"

namespace tycho {

/// An operator that takes a parameter, with what products need that give the parameter's
/// per-example gradients (tangent_gram).
struct KernelUse {
  uint32_t parameter = 0;
  per_example::Use use;
  std::string why_not;                  ///< not empty: products do not give them
  std::optional<per_example::Use> sum;  ///< see GramUse
  torch::autograd::Edge edge;           ///< of the output, or of that of `sum`
};

/// Records the uses of parameters by the operators of an evaluation. Arguments are held, detached,
/// with the values they had: those that are written to in place are copied before. Used by one
/// thread, with gradients disabled.
class KernelUseRecorder {
 public:
  /// Before an operator: whether it adds positions, the result of an embedding at indices that are
  /// the same for all examples, to something of the examples. From there on the gradient shows the
  /// examples.
  void before(const WatchedCall& call, c10::ArrayRef<const c10::IValue> inputs,
              const BatchRecorder& batch);
  /// After the operator of the last before(), with its first result.
  void after(const at::Tensor& output);
  /// The operator is a use of its parameters.
  void record(const WatchedCall& call, const at::Tensor& output, const BatchRecorder& batch);
  /// Something writes to `target` next.
  void protect(const at::Tensor& target);
  /// The uses since the last take(), in the order in which they ran. Forgets all else.
  std::vector<KernelUse> take();

 private:
  struct Added {
    size_t use;  // of the positions
    per_example::Use sum;
  };

  std::vector<KernelUse> uses_;
  TensorNumbers positions_;  // what embeddings at constant indices gave out: their entry of uses_
  std::optional<Added> added_;  // by the operator that runs
};

}  // namespace tycho
