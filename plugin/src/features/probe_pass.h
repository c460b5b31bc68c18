#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "curvature/model_state.h"
#include "curvature/probe_loss_surface.h"
#include "features/call_recorder.h"
#include "features/pass_memory.h"
#include "observer.h"
#include "tycho/feature_pass.h"
#include "tycho/probe.h"
#include "tycho/probe_loss.h"

namespace tycho {

/// A ProbeLoss evaluated with its operators watched. Nothing happens before the first call. Holds
/// what the layers of all chunks took in and gave out, and the graph of one chunk at a time.
class ProbePass : public FeaturePass {
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
  struct Chunk {
    RecordedCalls calls;
    at::Tensor output;  // with its graph, where there is one
    at::Tensor loss;
    void drop_graph();
  };

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
  void notice(v1::Event::Kind kind, std::string code, std::string message, v1::Scope scope,
              uint32_t entity);

  const ProbeLoss& loss_;
  SavedState& state_;
  const ModelInfo& model_;
  std::vector<at::Tensor> parameters_;  // those that are trained
  bool with_gradients_;
  bool with_attention_;
  ProbePassMemory* memory_;
  CallRecorder recorder_;
  std::string no_gradients_;

  bool ran_ = false;
  bool ran_all_ = false;
  bool comparable_ = true;
  std::vector<LayerUse> uses_;
  std::vector<AttentionUse> attention_;
  std::vector<at::Tensor> outputs_;
  std::vector<Chunk> chunks_;
  int64_t held_ = -1;  // the chunk whose graph lives
  std::vector<ObserverNotice> notices_;
};

}  // namespace tycho
