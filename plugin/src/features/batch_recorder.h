#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data_flow.h"
#include "features/watched_call.h"
#include "parameter_map.h"
#include "per_example/per_example.h"

namespace tycho {

/// Follows through the operators of an evaluation what is made of examples and what of parameters,
/// and finds from it how the examples lie in tensors and what data the evaluation is on: both as
/// operators with parameters meet them first. Used by one thread, with gradients disabled.
class BatchRecorder {
 public:
  /// `map` outlives the recorder. `batch_dim`: the examples' dimension.
  BatchRecorder(ParameterMap* map, int64_t batch_dim);

  /// Begins an evaluation.
  void begin();
  /// Before an operator. `takes_parameter`: one is among its arguments.
  void before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs, bool takes_parameter);
  /// After the operator of the last before().
  void after(const std::vector<c10::IValue>& results);
  /// This operator, which takes a parameter, is a use of it: what it meets is looked at. Reads up
  /// to 4096 elements of what is data.
  void meet(const WatchedCall& call);

  /// Whether a tensor can hold something of the examples, see DataFlow::carries.
  bool carries(const at::Tensor& tensor) const { return flow_.carries(tensor); }

  /// How the examples lie, as far as it is known; size 0: not to be seen.
  const per_example::Batch& batch() const { return batch_; }
  /// Ends the evaluation: fingerprints of its data in the order in which they were met, float64, on
  /// the CPU. The same for the same data; different for data of which any looked at differ.
  std::vector<at::Tensor> end();

 private:
  bool depends_on_parameters(const at::Tensor& tensor) const;

  ParameterMap* map_;
  int64_t batch_dim_;
  DataFlow flow_;
  per_example::Batch batch_;
  std::vector<at::Tensor> data_;
  // Storages that hold what was computed from parameters. Weak, so that an address that is used
  // again is not mistaken.
  using Weak = c10::weak_intrusive_ptr<c10::StorageImpl>;
  std::unordered_map<const c10::StorageImpl*, Weak> dependent_;
  bool reads_parameters_ = false;  // the operator that runs
};

}  // namespace tycho
