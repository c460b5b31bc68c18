#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "curvature/model_state.h"
#include "curvature/user_losses.h"
#include "tape/loss_tape.h"
#include "tape/tape_recorder.h"
#include "tycho/probe.h"

namespace tycho {

/// Probe and step losses from tapes of the trainer's own steps, where the user gave none.
///
/// While it collects, which is during the first steps, each step is recorded, and its tape proved
/// against the gradients that backward delivered: these tapes become the chunks of the probe loss.
/// After that a step is recorded where a probe asks for its loss. A loss whose tape is refuted is
/// left to the user, which is said once. Of the training thread.
class TapeLosses {
 public:
  struct Options {
    bool enabled = true;
    int64_t memory = 0;          ///< bytes, of all tapes together
    bool mean_reduction = true;  ///< losses are means over examples
    WorkMeter* meter = nullptr;
  };
  /// A step that is over.
  struct Step {
    at::Tensor loss;  ///< as the user gave it; undefined: `value`
    double value = 0;
    int64_t batch_size = 0;
    const std::vector<ParameterObservation>* parameters = nullptr;  ///< by id
    /// Looks at the tape once it is proved, with the parameters as they were when the step began.
    /// `memory`: what it may hold, in bytes. Must not throw.
    std::function<void(const tape::LossTape& tape, const std::vector<at::Tensor>& parameters,
                       int64_t memory)>
        look;
  };

  /// `parameters`: all of the model's. References outlive this.
  TapeLosses(const ModelState& model, std::vector<ProbeLossSurface::Parameter> parameters,
             UserLosses* losses, UserLosses::Say say, Options options);
  ~TapeLosses();

  /// Whether the first steps are being recorded, whatever else is due at them.
  bool collects() const;
  /// What a step has to observe so that its tape can be proved; nothing where none is recorded.
  Needs needs(const Needs& due) const;
  /// Before the first forward pass of a step with these needs.
  void begin_step(const Needs& due);
  bool recording() const { return recorder_ != nullptr; }
  /// Of the step that runs; nullptr: none.
  const tape::TapeRecorder* recorder() const { return recorder_.get(); }
  /// Whether steps with gradients of single examples are recorded, because it is not known where
  /// the examples lie.
  void want_rows(bool wanted) { rows_wanted_ = wanted; }
  /// What was being recorded is not looked at.
  void drop_step() { recorder_.reset(); }
  bool refused() const { return refused_; }
  void set_paused(bool paused) {
    if (recorder_) recorder_->set_paused(paused);
  }
  /// Evaluates the tape, with the model's state put back afterwards whatever is thrown.
  void end_step(const Step& step);

 private:
  using Tape = std::shared_ptr<const tape::LossTape>;

  void refuse(const std::string& why);
  /// The parameters as they were when the step was recorded; false where that is not known.
  bool visit_begin(SavedState* state, const Step& step) const;
  std::string prove(const tape::LossTape& tape, const Step& step) const;
  void collect(Tape tape, int64_t examples);
  void offer_probe_loss();

  const ModelState& model_;
  std::vector<ProbeLossSurface::Parameter> parameters_;
  std::vector<at::Tensor> tensors_;
  UserLosses* losses_;
  UserLosses::Say say_;
  Options options_;
  std::unique_ptr<tape::TapeRecorder> recorder_;
  std::unordered_set<const c10::TensorImpl*> copied_at_once_;
  std::vector<Tape> chunks_;
  std::vector<int64_t> examples_;
  int64_t terms_ = 0;  // examples, or labels where there are more
  int64_t bytes_ = 0;
  int attempts_ = 0;
  bool collected_ = false;
  bool refused_ = false;
  bool rows_wanted_ = false;
};

}  // namespace tycho
