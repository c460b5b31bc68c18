#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "gradient_capture.h"
#include "pass_examples.h"
#include "per_example/per_example.h"
#include "per_example/uses.h"
#include "rows/tracker.h"
#include "tape/row_examples.h"
#include "tape/tape_recorder.h"
#include "tycho/probe.h"
#include "work_meter.h"

namespace tycho {

/// A parameter, or a view of it, among the arguments of an operator.
struct AppliedParameter {
  uint32_t parameter = 0;
  size_t position = 0;  ///< of the argument
  at::Tensor argument;
  bool in_list = false;
};

/// Squared norms of the examples' gradients of each parameter in one step (theory T1.1), from what
/// each operator takes and the gradient of what it puts out. Exact, or not given: the example of
/// each row is known from the operators that made it (rows::Tracker), every use of the parameter is
/// one whose gradient is known (per_example), nothing behind it mixes examples, and at every step
/// the examples' gradients add up to the gradient that backward delivered, in a random projection.
///
/// Forward calls come from the training thread, gradients from backward's. Hooks of graphs that
/// outlive the object do nothing.
class ExampleGradients {
 public:
  using ParameterOf = std::function<std::optional<uint32_t>(const at::Tensor&)>;
  /// `selected_layers`: by layer id; empty: all. `overlaps_another`: whether a
  /// parameter shares memory with another. `hooks` takes the time of hooks on outputs;
  /// nullptr: not measured.
  ExampleGradients(const ModelInfo& model, int64_t batch_dim, std::vector<bool> selected_layers,
                   ParameterOf parameter_of, std::function<bool(uint32_t)> overlaps_another,
                   WorkMeter* hooks = nullptr);
  ~ExampleGradients();

  /// `expected`: examples of the step before, 0 when unknown. `recorder`: of the tape of this step,
  /// called before this and alive until finish(); nullptr: none.
  void start_step(bool wanted, int64_t expected, const tape::TapeRecorder* recorder = nullptr);
  void set_paused(bool paused) { paused_ = paused; }
  /// Nothing of this step can be trusted any more.
  void give_up(const std::string& why);

  /// Around an operator: `applied` are the parameters that it takes and that are trained.
  void before(const char* name, c10::ArrayRef<const c10::IValue> inputs,
              const std::vector<AppliedParameter>& applied);
  void after(const std::vector<c10::IValue>& results);
  /// A parameter's gradient was accumulated.
  void on_gradient(uint32_t id, const at::Tensor& delivered, GradientCapture::Use use);

  /// Before finish(): the loss must not come from where examples could not be followed.
  void check_loss(const at::Tensor& loss);
  /// After the step, before finish(): examples of each of the parameter's backward passes; empty
  /// where that is not known (PassExamples). `batch_size`: what the user says; 0: unknown.
  std::vector<int64_t> microbatch_sizes(uint32_t id, int64_t batch_size) const {
    return passes_.sizes(id, batch_size);
  }
  /// After the step: fills per_example_norm_sq and microbatch_sizes, or why_not_per_example.
  /// `backwards`: passes that make up the gradient. `batch_size`: what the user says; 0: unknown.
  void finish(uint32_t id, int64_t backwards, int64_t batch_size, ParameterObservation* observed);
  void end_step();

  /// After finish() of all parameters: whether it was not known of some where the examples lie, or
  /// whether they stay apart, so that a tape of such a step would help.
  bool lacks_rows() const { return lacks_rows_; }
  /// Whether an experiment on the tape of this step may tell.
  bool asks() const;
  /// What an experiment needs.
  std::vector<tape::RowSource> sources() const;
  std::vector<tape::RowsWanted> wanted_rows() const;
  int64_t examples() const { return pass_examples_; }
  /// With the parameters as they were when the step began: finish() of a parameter that asked.
  /// Whether it is exact now; else why not is said.
  bool resolve(uint32_t id, const tape::RowExamples& found, ParameterObservation* observed);

 private:
  // Outlives the object in hooks of graphs that the user retains.
  struct Step {
    std::mutex mutex;
    bool active = false;
    ExampleGradients* owner = nullptr;
    WorkMeter* meter = nullptr;
  };
  struct Applied;    // one use, from before() to the hook on its output
  struct Recurrent;  // one use of the weights of a recurrent layer, to their gradients
  struct RowsOfUse;
  struct Waiting;
  struct Parameter;
  // What is made of a table that is looked up with indices that say nothing of the examples.
  struct LookedUp {
    c10::weak_intrusive_ptr<c10::TensorImpl> alive;
    std::vector<std::shared_ptr<Applied>> uses;
    std::vector<std::vector<int64_t>> shapes;  // of each, before it was broadcast
  };

  bool selected(uint32_t id) const;
  void note_sources(c10::ArrayRef<const c10::IValue> inputs);
  void place_sources();
  /// Nothing of this step is known to keep examples apart.
  void lose_rows(const std::string& why);
  std::string resolved(Parameter* parameter, const tape::RowExamples& found, at::Tensor* norm);
  void contribute(Applied* applied, at::Tensor d, Parameter* parameter);
  /// The squared norms, held against the gradient that was delivered.
  at::Tensor joined(std::vector<per_example::Part> parts, const at::Tensor& delivered,
                    Parameter* parameter, std::string* why_not);
  void note_looked_up(const std::string& name, c10::ArrayRef<const c10::IValue> inputs);
  void watch(std::shared_ptr<Applied> applied, const at::Tensor& output);
  /// Whether `name` is a recurrent layer: then `pending_recurrent_`, or `why_not`, is set.
  bool begin_recurrent(const std::string& name, c10::ArrayRef<const c10::IValue> inputs,
                       const std::vector<AppliedParameter>& applied, std::string* why_not);
  void end_recurrent(const std::vector<c10::IValue>& results);
  /// In backward: the gradients of all its outputs have arrived.
  void contribute(Recurrent* call);
  void on_output_gradient(const std::shared_ptr<Applied>& applied, const at::Tensor& d);
  void on_lost(const at::Tensor& output, const std::string& why);
  void mark_upstream(torch::autograd::Node* node, const std::string& why);

  ParameterOf parameter_of_;
  std::function<bool(uint32_t)> overlaps_another_;
  WorkMeter* hooks_;
  std::vector<bool> selected_layers_;
  int64_t batch_dim_;
  rows::Tracker tracker_;
  PassExamples passes_;
  int64_t likely_examples_ = 0;  // of the current forward pass, until the tracker has decided
  std::vector<Parameter> parameters_;
  std::unordered_map<const c10::TensorImpl*, uint32_t> by_impl_;
  std::shared_ptr<Step> step_;
  uint64_t steps_ = 0;
  bool wanted_ = false;
  bool paused_ = false;
  bool in_call_ = false;
  bool pass_ended_ = false;
  int walks_ = 0;
  std::string given_up_;
  const tape::TapeRecorder* recorder_ = nullptr;
  bool recorded_ = false;  // in this step
  bool lacks_rows_ = false;
  int64_t pass_examples_ = -1;  // of the step's first backward pass; -1: none has begun
  bool several_passes_ = false;
  std::string why_no_rows_;  // of all parameters
  int64_t kept_bytes_ = 0;   // of inputs and gradients that wait for an experiment
  std::map<tape::ValueId, rows::Layout> sources_;
  std::vector<std::pair<tape::ValueId, at::Tensor>> unplaced_;
  std::vector<std::shared_ptr<Applied>> pending_;
  std::shared_ptr<Recurrent> pending_recurrent_;
  std::vector<LookedUp> pending_lookups_;  // that the operator which runs adds or reshapes
  bool pending_adds_ = false;
  bool pending_expands_ = false;
  std::unordered_map<const c10::TensorImpl*, LookedUp> lookups_;
};

}  // namespace tycho
