#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backward_watch.h"
#include "tycho/probe.h"
#include "work_meter.h"

namespace tycho {

/// Takes what backward delivers to each parameter, from post-hooks on the gradient accumulators.
/// The hooks are put there when a backward pass begins, on the accumulators that its graph holds
/// then: nothing of a parameter is held before, so that its data may be replaced at any time
/// (set_data, by another shape, dtype or device), as if nobody watched.
///
/// One step may hold several backward passes. Those that accumulate in `.grad` are microbatches. If
/// `.grad` was cleared in between, the later ones replace the earlier ones, whose gradient was
/// thrown away. Where the parameter has moved meanwhile they evaluate another point. They count if
/// the parameter moves once more after them, because then an optimizer has used them (sharpness-
/// aware minimisation); not if it stays (a look at the gradient after the update), nor with an
/// optimizer that evaluates the loss itself (LBFGS): then the first counts, which is at the
/// parameters before the update.
///
/// Where backward delivered nothing to a parameter, its `.grad` counts: the program put it there
/// (MAML), or left it there, and the optimizer uses it. Where hooks of the program change what the
/// accumulator adds, `.grad` after it counts. Sparse gradients are kept sparse.
class GradientCapture : private BackwardListener {
 public:
  enum class Use {
    kFirst,      ///< first backward of a (new) group
    kContinues,  ///< one more microbatch
    kIgnored,    ///< evaluates another point
    kUnknown,    ///< cannot be told; nothing about this parameter is exact in this step
  };
  /// Called in backward, after a parameter's gradient was accumulated, on backward's thread.
  using Listener = std::function<void(uint32_t parameter, const at::Tensor& delivered, Use use)>;

  /// `meter` takes the time of the hooks; nullptr: not measured.
  GradientCapture(const ModelInfo& model, Listener listener, WorkMeter* meter = nullptr);
  ~GradientCapture() override;

  /// What is kept of a gradient until the step is observed.
  enum class Keep {
    kNothing,
    kNorm,
    /// Sum and sum of squares: enough to see later that `.grad` still is what was delivered,
    /// without a copy. Copies where the fast sums do not apply, or where steps hold several
    /// backwards.
    kFingerprint,
    kCopy,
  };
  /// `sees_writes`: written() will be told of every operator that changes a parameter.
  void install(Keep keep, bool microbatch_norms, bool sees_writes);
  /// Whether the optimizer evaluates the loss itself, at several places in a step, as LBFGS does.
  void set_evaluates(bool evaluates) { evaluates_ = evaluates; }
  /// Whether steps hold several backward passes, which need written() to be told apart.
  bool needs_writes() const { return several_backwards_; }
  /// An operator changes the parameter in place.
  void written(uint32_t parameter);
  void uninstall();
  /// Whether a backward pass since install() ran on another thread than the one that called it; on
  /// other devices than the CPU that cannot be told. Known until the next install().
  bool on_another_thread() const {
    return on_cpu_ && armed_by_ != std::thread::id() && armed_by_ != installer_;
  }
  void set_paused(bool paused) { paused_ = paused; }

  struct Captured {
    at::Tensor gradient;  ///< as delivered, not unscaled; undefined: none, or not to be had
    std::string why_not;  ///< not empty: there was one that could not be had
    /// Not empty: why the gradients of single examples do not follow from what backward delivers.
    std::string why_no_examples;
    at::Tensor norm_sq;      ///< |gradient|^2 where no copy was kept
    at::Tensor fingerprint;  ///< sum_and_square() of the gradient, with Keep::kFingerprint
    std::vector<at::Tensor> microbatch_norm_sq;
    int64_t backwards = 0;  ///< of the group
    bool cleared = false;   ///< `.grad` is gone already
    bool by_hand = false;   ///< backward delivered none: `gradient` is `.grad`, not copied
  };
  /// After uninstall: what was captured, by parameter id. Forgets it.
  std::vector<Captured> take();

 private:
  struct Slot;
  class Hook;
  void backward_begins() override;
  void delivered(Slot* slot, const at::Tensor& gradient);

  Listener listener_;
  WorkMeter* meter_;
  std::unique_ptr<BackwardWatch> watch_;
  bool on_cpu_ = true;
  std::thread::id installer_;
  std::thread::id armed_by_;  // the thread whose passes are watched in this step
  std::vector<std::unique_ptr<Slot>> slots_;
  std::atomic<bool> paused_{false};
  bool microbatch_norms_ = false;
  Keep keep_ = Keep::kCopy;
  bool sees_writes_ = false;
  bool evaluates_ = false;         ///< the optimizer evaluates the loss itself
  bool follows_ = false;           ///< later backward passes at another place are what counts
  bool several_backwards_ = true;  ///< whether the step before had microbatches; unknown at first
};

}  // namespace tycho
