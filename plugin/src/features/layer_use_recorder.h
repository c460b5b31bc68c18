#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "features/batch_recorder.h"
#include "features/tensor_numbers.h"
#include "features/watched_call.h"
#include "parameter_map.h"
#include "tycho/feature_pass.h"
#include "tycho/probe.h"

namespace tycho {

/// Records what layers take in and give out in an evaluation, from the operators that take their
/// weights; a bias that another operator adds to the output belongs to it. Inputs and outputs are
/// held, detached, with the values they had: those that are written to in place are copied before.
/// Where an operator is not one of a layer, why is remembered, by layer. Used by one thread, with
/// gradients disabled.
class LayerUseRecorder {
 public:
  /// References outlive the recorder.
  LayerUseRecorder(const ModelInfo& model, ParameterMap* map);

  /// Before an operator: whether it adds the bias of a layer to its output.
  void before(const WatchedCall& call) { merges_ = find_merge(call); }
  /// Whether the operator of the last before() does.
  bool merges() const { return merges_.has_value(); }
  /// The operator is a use of its parameters, and gave `output`.
  void record(const WatchedCall& call, const at::Tensor& output, const BatchRecorder& batch);
  /// The operator takes parameters, but is no use of a layer, for this reason.
  void reject(const WatchedCall& call, const std::string& why);
  /// Something writes to `target` next.
  void protect(const at::Tensor& target);

  /// Whose linear operator ran last in this evaluation.
  std::optional<uint32_t> last_linear() const { return last_linear_; }
  /// Why an operator was seen that takes the layer's weight and is no use of it, in this or an
  /// earlier evaluation; empty: none was.
  const std::string& why_not(uint32_t layer) const { return why_not_[layer]; }

  struct Uses {
    std::vector<LayerUse> uses;                // in the order in which they ran
    std::vector<torch::autograd::Edge> edges;  // of their outputs
  };
  /// Ends the evaluation: its uses but for those whose output was changed without an operator's
  /// name saying so. Forgets all else but why_not().
  Uses take();

 private:
  std::optional<size_t> find_merge(const WatchedCall& call) const;
  void merge(size_t number, const WatchedCall& call, const at::Tensor& output);
  void record_use(const WatchedCall& call, const ParameterArgument& argument,
                  const at::Tensor& output, const BatchRecorder& batch);

  const ModelInfo& model_;
  ParameterMap* map_;
  Uses found_;
  std::vector<uint32_t> versions_;  // of the uses' outputs, when they were seen
  TensorNumbers last_outputs_;      // which use gave a tensor
  std::optional<size_t> merges_;  // the operator that runs adds its bias to the output of this use
  std::optional<uint32_t> last_linear_;
  std::vector<std::string> why_not_;
};

}  // namespace tycho
