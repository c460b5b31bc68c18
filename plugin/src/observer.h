#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tape/row_examples.h"
#include "tape/tape_recorder.h"
#include "tycho/probe.h"
#include "work_meter.h"

namespace tycho {

struct ObserverOptions {
  int64_t batch_dim = 0;
  /// By layer id: whether the user's include/exclude patterns select it.
  std::vector<bool> selected_layers;
  /// Take the time of hooks on gradients, and of those on operators and outputs. Not owned;
  /// nullptr: not measured. Hooks of graphs that the user retains past the observer report to
  /// nobody.
  WorkMeter* gradient_hooks = nullptr;
  WorkMeter* operator_hooks = nullptr;
  /// The optimizer evaluates the loss itself, at several places in a step (LBFGS).
  bool optimizer_evaluates = false;
};

/// Something the observer has to say (said once per code and entity by the session).
struct ObserverNotice {
  v1::Event::Kind kind = v1::Event::NOTICE;
  std::string code;
  std::string message;
  v1::Scope scope = v1::SCOPE_RUN;
  uint32_t entity = 0;
};

/// What one step left behind.
struct StepObservation {
  std::vector<ParameterObservation>
      parameters;                        ///< by parameter id; previous_weight is the session's
  std::vector<LayerObservation> layers;  ///< by layer id
  /// By parameter id: sum_and_square() of a gradient that was delivered and is not copied; it may
  /// still be in `.grad`.
  std::vector<at::Tensor> fingerprints;
  std::vector<ObserverNotice> notices;
  std::optional<v1::ModelStructure> structure;  ///< where the needs had symmetries
  std::vector<SymmetryGroup> symmetries;
};

/// Watches operators and gradient accumulation of one model on the calling thread (design 5).
/// Nothing is installed between uninstall() and the next install().
class Observer {
 public:
  Observer(const ModelInfo& model, ObserverOptions options);
  ~Observer();

  /// Before the first forward of a step. `expected_batch_size`: of the step before, 0 when unknown.
  /// `recorder`: of the step's tape, made before this and alive until uninstall(); nullptr: none.
  void install(const Needs& needs, double loss_scale, int64_t expected_batch_size,
               const tape::TapeRecorder* recorder = nullptr);
  /// From the next install() on: where needs have sums over parameters only, gradients are not
  /// copied but expected to be found unchanged in `.grad`.
  void trust_gradients(bool trusted);
  void set_loss_scale(double loss_scale);
  /// By parameter id: how its last observed use applied it, if it is a convolution's kernel.
  const std::vector<ConvolutionGeometry>& convolutions() const;
  /// Whether watching operators may find geometries that are not known: of kernels that were not
  /// used in the first passes nothing is expected.
  bool lacks_convolutions() const;
  void pause();
  void resume();
  /// Before uninstall(): what the user says the step minimised.
  void note_loss(const at::Tensor& loss);
  /// After optimizer.step(): takes the hooks out and hands over what was seen. `batch_size` as the
  /// user gave it; 0: unknown.
  StepObservation uninstall(int64_t batch_size);

  /// After uninstall(): whether single examples of some parameters were not observed because it is
  /// not known where the examples lie; and whether an experiment on the step's tape may tell.
  bool lacks_rows() const;
  /// No experiment will follow.
  void forget_rows();
  bool asks_for_rows() const;
  /// Makes it, with the parameters as they were when the step began, and completes what uninstall()
  /// handed over. False: nothing could be established. Does not throw.
  bool establish_rows(const tape::LossTape& tape, const std::vector<at::Tensor>& parameters,
                      int64_t memory, StepObservation* seen);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tycho
