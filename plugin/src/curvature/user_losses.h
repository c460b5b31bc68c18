#pragma once

#include <torch/optim/optimizer.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "curvature/model_state.h"
#include "curvature/probe_loss_surface.h"
#include "curvature/stability.h"
#include "features/pass_memory.h"
#include "observer.h"
#include "tycho/probe.h"
#include "tycho/probe_loss.h"

namespace tycho {

class ProbePass;

/// The losses that the user gave to be measured beside training, and their surfaces at one step.
class UserLosses {
 public:
  /// What there is to say, once per code.
  using Say = std::function<void(v1::Event::Kind, const std::string& code, const std::string&)>;

  /// `model` outlives this. `parameters`: all of the model's, with ids where they are selected.
  UserLosses(const ModelState& model, std::vector<ProbeLossSurface::Parameter> parameters, Say say);

  ~UserLosses();

  /// The model's parameters are others now; not between open() and close(). What was known of the
  /// losses is found out anew.
  void set_parameters(std::vector<ProbeLossSurface::Parameter> parameters);
  /// Whose layers feature passes watch, and where their examples lie; outlives this.
  void watch_layers(const ModelInfo& model, int64_t batch_dim) {
    layers_ = &model;
    batch_dim_ = batch_dim;
  }

  /// Losses without weights, or without a function, are refused: said, and false.
  bool set_probe(ProbeLoss loss);
  bool set_step(std::function<at::Tensor()> loss);
  bool set_batches(std::function<at::Tensor(int64_t index)> loss);
  bool has_probe() const { return entries_[kProbe].given; }
  /// A probe loss from tapes; step losses will come from tapes too, unless the user gave one.
  bool set_probe_tape(ProbeLoss loss);
  /// No loss is from a tape any more.
  void withdraw_tapes();
  bool step_is_from_tape() const { return step_from_tape_; }
  /// Whether the batch of each step serves as the fresh batch, at the parameters before its update.
  bool batch_is_from_tape() const { return step_from_tape_ && !entries_[kBatch].given; }
  /// Of the step that ends; empty: it has none, and the probe loss takes its place.
  void set_step_tape(std::function<at::Tensor()> loss);

  /// Whether these needs make the probe loss be evaluated, for more than its value.
  static bool evaluates_probe(const Needs& needs);
  /// Whether all that `needs` asks for in losses was given and can be used.
  bool serve(const Needs& needs) const;
  /// Why not, in words for the user.
  std::string missing(const Needs& needs) const;

  /// Puts surfaces, update and stability into `view`, whose parameters, optimizer and step are
  /// there. They live until close(), or restore(), which has to be called whatever is thrown.
  void open(const Needs& needs, torch::optim::Optimizer& optimizer, StepView* view);
  /// Parameters where training left them, whatever a probe did; no surface of a suspended loss.
  void settle(StepView* view);
  /// The model and the generators as they were when open() was called, bit for bit, and nothing of
  /// the losses left that could touch them. False where that failed.
  bool restore() noexcept;
  /// restore(), and what there is to say about the losses.
  void close();
  /// What feature passes have to say since the last call.
  std::vector<ObserverNotice> take_notices() { return std::exchange(notices_, {}); }
  /// A loss could not be used: it is not evaluated any more, which is said.
  void suspend(const LossError& error);

 private:
  enum Kind { kProbe, kStep, kBatch, kKinds };
  struct Entry {
    ProbeLoss loss;
    bool given = false;
    bool suspended = false;
    bool absent = false;  // at this step
    ProductMethod method;
    ProductMethod::Kind said = ProductMethod::kUndecided;
    int64_t opened = 0;
    std::unique_ptr<ProbeLossSurface> surface;
    bool usable() const { return given && !suspended; }
    bool there() const { return usable() && !absent; }
  };

  bool set(Kind kind, ProbeLoss loss);
  /// Once: what is wrong with LibTorch's own operators, so that gradients cannot be had.
  void try_operators(const std::vector<at::Tensor>& parameters);
  void say_method(Kind kind);
  void share_proof();
  LossSurface* open(Kind kind, bool checked);
  std::function<std::unique_ptr<LossSurface>()> batch_of_step(const StepView& view);
  at::Tensor update_of(const StepView& view, const LossSurface& surface) const;

  const ModelState& model_;
  std::vector<ProbeLossSurface::Parameter> parameters_;
  Say say_;
  std::unique_ptr<SavedState> state_;
  std::array<Entry, kKinds> entries_;
  std::function<at::Tensor(int64_t)> batches_;
  int64_t next_batch_ = -1;
  bool probe_from_tape_ = false;
  bool step_from_tape_ = false;
  Stability stability_;
  const ModelInfo* layers_ = nullptr;
  int64_t batch_dim_ = 0;
  std::unique_ptr<ProbePass> pass_;
  ProbePassMemory pass_memory_;
  bool operators_tried_ = false;
  std::string no_gradients_;  // why
  std::vector<ObserverNotice> notices_;
};

}  // namespace tycho
