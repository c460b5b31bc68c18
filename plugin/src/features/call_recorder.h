#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/edge.h>

#include <cstdint>
#include <string>
#include <vector>

#include "features/attention_recorder.h"
#include "features/batch_recorder.h"
#include "features/kernel_use_recorder.h"
#include "features/layer_use_recorder.h"
#include "features/watched_call.h"
#include "operator_watch.h"
#include "parameter_map.h"
#include "per_example/per_example.h"
#include "tycho/feature_pass.h"
#include "tycho/probe.h"

namespace tycho {

/// What the operators of one evaluation have shown.
struct RecordedCalls {
  std::vector<LayerUse> uses;  // in the order in which they ran; their chunk is not set
  std::vector<torch::autograd::Edge> edges;  // of their outputs
  std::vector<KernelUse> kernel_uses;
  std::vector<AttentionUse> attention;
  per_example::Batch batch;
  std::vector<at::Tensor> data;  // see BatchRecorder::end
};

/// Records the calls of layers while it listens to the operators of an evaluation of the probe
/// loss, between begin() and end(): finds the parameters among the arguments of each operator, and
/// tells those who record. What an evaluation holds on to is gone at its end(), or else at the next
/// begin(). Used by one thread.
class CallRecorder : public OperatorListener {
 public:
  /// `model` outlives the recorder. `kernel_uses`: whether they are recorded, with their arguments.
  CallRecorder(const ModelInfo& model, int64_t batch_dim, bool kernel_uses);
  CallRecorder(const CallRecorder&) = delete;
  CallRecorder& operator=(const CallRecorder&) = delete;

  /// Begins an evaluation. `attention`: whether it is looked for.
  void begin(bool attention);
  RecordedCalls end();
  /// Why nothing that was recorded since begin() counts; empty: nothing went wrong.
  const std::string& failure() const { return failure_; }
  /// See LayerUseRecorder::why_not.
  const std::string& why_not(uint32_t layer) const { return layers_.why_not(layer); }

  bool before(const char* name, c10::ArrayRef<const c10::IValue> inputs) override;
  void after(const std::vector<c10::IValue>& outputs) override;
  void writes(const c10::IValue&) override {}

 private:
  void before_operator(const char* name, c10::ArrayRef<const c10::IValue> inputs);
  void after_operator(const std::vector<c10::IValue>& results);
  void find_parameters(c10::ArrayRef<const c10::IValue> inputs);
  void protect(const at::Tensor& target);

  ParameterMap map_;
  bool with_kernel_uses_;
  bool with_attention_ = false;
  BatchRecorder batch_;
  LayerUseRecorder layers_;
  KernelUseRecorder kernel_uses_;
  AttentionRecorder attention_;
  WatchedCall call_;  // the operator that runs
  std::string failure_;
};

}  // namespace tycho
