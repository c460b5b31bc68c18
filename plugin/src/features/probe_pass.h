#pragma once

#include <torch/csrc/autograd/edge.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "curvature/model_state.h"
#include "curvature/probe_loss_surface.h"
#include "data_flow.h"
#include "features/layer_call.h"
#include "features/pass_memory.h"
#include "observer.h"
#include "operator_watch.h"
#include "parameter_map.h"
#include "per_example/per_example.h"
#include "tycho/feature_pass.h"
#include "tycho/probe.h"
#include "tycho/probe_loss.h"

namespace tycho {

/// A ProbeLoss evaluated with its operators watched. Nothing happens before the first call.
class ProbePass : public FeaturePass, private OperatorListener {
 public:
  /// References and `memory` outlive the pass. `parameters`: as for ProbeLossSurface.
  ProbePass(const ProbeLoss& loss, SavedState& state, const ModelInfo& model,
            const std::vector<ProbeLossSurface::Parameter>& parameters, int64_t batch_dim,
            const Needs& needs, ProbePassMemory* memory);

  const std::vector<LayerUse>& uses() override;
  bool comparable() override;
  const std::vector<AttentionUse>& attention() override;
  int64_t chunks() const override { return static_cast<int64_t>(loss_.weights.size()); }
  double chunk_weight(int64_t chunk) const override {
    return loss_.weights[static_cast<size_t>(chunk)];
  }
  bool has_output() const override { return static_cast<bool>(loss_.output); }
  const std::vector<at::Tensor>& outputs() override;
  at::Tensor labels(int64_t chunk) override;
  at::Tensor targets(int64_t chunk) override;
  int64_t examples(int64_t chunk) override;
  at::Tensor by_example(const LayerUse& use, const at::Tensor& output) override;
  std::vector<at::Tensor> gradients(int64_t chunk, const at::Tensor& seed) override;
  std::vector<at::Tensor> loss_gradients() override;
  TangentKernel tangent_kernel(int64_t limit, at::Generator generator) override;
  std::vector<at::Tensor> parameters() override;
  Line line(int64_t chunk, const std::vector<at::Tensor>& from) override;

  /// Gradients are not given, for this reason: NoProducts. Empty: they are.
  void refuse_gradients(std::string why) { no_gradients_ = std::move(why); }
  /// What there is to say, once per code and entity.
  std::vector<ObserverNotice> take_notices();

 private:
  /// An operator that takes a parameter as an argument.
  struct ParameterUse {
    uint32_t parameter = 0;
    per_example::Use use;
    std::string why_not;                  // its per-example gradients cannot be had from products
    std::optional<per_example::Use> sum;  // see GramUse
    torch::autograd::Edge edge;
  };
  struct Chunk {
    std::vector<LayerUse> uses;
    std::vector<torch::autograd::Edge> edges;  // of the uses' outputs
    std::vector<std::pair<at::Tensor, uint32_t>> versions;
    std::vector<ParameterUse> parameter_uses;
    per_example::Batch batch;
    std::vector<at::Tensor> data;
    std::vector<AttentionUse> attention;
    at::Tensor output;  // with its graph, where there is one
    at::Tensor loss;
    void drop_graph();
  };
  /// Gradients captured at edges of the graph, so that neither hooks nor gradients of leaves are
  /// touched; undefined where `root` does not depend on them. The graph is kept.
  static std::vector<at::Tensor> backward(const at::Tensor& root, const at::Tensor& seed,
                                          const std::vector<torch::autograd::Edge>& edges);
  struct Pending {
    uint32_t parameter = 0;
    size_t position = 0;
    at::Tensor argument;
    std::string why_not;
  };

  // OperatorListener.
  bool before(const char* name, c10::ArrayRef<const c10::IValue> inputs) override;
  void after(const std::vector<c10::IValue>& outputs) override;
  void writes(const c10::IValue&) override {}
  void before_operator(const char* name, c10::ArrayRef<const c10::IValue> inputs);
  void after_operator(const std::vector<c10::IValue>& outputs);

  [[noreturn]] void fail(const std::string& what) const { throw LossError("probe_loss", what); }
  /// Runs what may call the user's code, with operators unobserved; LossError whatever it throws.
  void evaluate(const std::function<void()>& action) const;
  void run();
  /// The chunk's output by example, [n, outputs]; undefined where the examples cannot be found.
  at::Tensor output_rows(const Chunk& chunk, const at::Tensor& output) const;
  void begin();
  Chunk run_chunk(int64_t chunk);
  void hold(int64_t chunk);
  void finish();
  void find_batch();
  void note_uses(const at::Tensor& output);
  void before_attention(c10::ArrayRef<const c10::IValue> inputs);
  void after_attention(const std::vector<c10::IValue>& outputs);
  void protect(const at::Tensor& target);
  void find_merge(std::string_view name);
  void before_positions(c10::ArrayRef<const c10::IValue> inputs);
  void after_positions(const at::Tensor& output);
  at::Tensor fingerprint(const at::Tensor& data) const;
  std::optional<uint32_t> parameter_of(const at::Tensor& tensor) const;
  bool tainted(const at::Tensor& tensor) const;
  void notice(v1::Event::Kind kind, std::string code, std::string message, v1::Scope scope,
              uint32_t entity);
  // Of tangent kernels, by parameter id.
  using ByParameter = std::vector<at::Tensor>;
  ByParameter kernel_products(const at::Tensor& along, int64_t n,
                              std::vector<std::string>* why_not);
  void check_products(const at::Tensor& along, int64_t n, const ByParameter& kernels);
  void kernel_gradients(const at::Tensor& along, int64_t n, const std::vector<uint32_t>& of,
                        ByParameter* kernels, std::vector<std::string>* why_not);
  std::vector<at::Tensor> parameter_gradients(const at::Tensor& root,
                                              const std::vector<uint32_t>& of);

  const ProbeLoss& loss_;
  SavedState& state_;
  const ModelInfo& model_;
  std::vector<at::Tensor> parameters_;  // those that are trained
  int64_t batch_dim_;
  bool with_gradients_;
  bool with_attention_;
  ProbePassMemory* memory_;
  std::string no_gradients_;

  bool ran_ = false;
  bool ran_all_ = false;
  bool comparable_ = true;
  std::vector<LayerUse> uses_;
  std::vector<AttentionUse> attention_;
  std::vector<at::Tensor> outputs_;
  std::vector<Chunk> chunks_;
  int64_t held_ = -1;                      // the chunk whose graph lives
  std::vector<std::string> unrecognised_;  // by layer: why a use of it is not one of a layer
  std::vector<ObserverNotice> notices_;

  // While operators are watched.
  mutable ParameterMap map_;
  DataFlow flow_;
  Chunk* now_ = nullptr;
  std::string failure_;
  std::string name_;  // of the operator that runs
  std::vector<c10::IValue> arguments_;
  std::vector<Pending> pending_;
  std::optional<size_t> merges_;  // it adds its bias to the output of this use
  struct Output {
    using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
    Weak tensor;
    size_t use;
  };
  // What embeddings at constant indices (positions) gave out, and their entry of parameter_uses.
  std::unordered_map<const c10::TensorImpl*, Output> positions_;
  struct Added {
    size_t use;
    per_example::Use sum;
  };
  std::optional<Added> added_;  // by the operator that runs
  bool reads_parameters_ = false;
  using Weak = c10::weak_intrusive_ptr<c10::StorageImpl>;
  std::unordered_map<const c10::StorageImpl*, Weak> tainted_;  // depends on parameters
  std::unordered_map<const c10::TensorImpl*, Output> last_outputs_;
  // Results of softmax that may be attention.
  struct Attention {
    at::Tensor scores, weights;
    uint32_t layer = 0;
  };
  std::vector<std::optional<Attention>> softmaxes_;
  std::unordered_map<const c10::TensorImpl*, Output> passes_on_;  // what holds which result
  std::optional<Attention> softmax_;                              // that runs
  std::optional<size_t> passed_on_;                               // by the operator that runs
};

}  // namespace tycho
