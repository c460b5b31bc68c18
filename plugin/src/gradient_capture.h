#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// Takes what backward delivers to each parameter, from post-hooks on the gradient accumulators.
///
/// One step may hold several backward passes. Those that accumulate in `.grad` are microbatches. If
/// `.grad` was cleared in between, the later ones replace the earlier ones, whose gradient was
/// thrown away; unless the parameter has moved meanwhile: then they evaluate another point (LBFGS)
/// and are left out, because a record holds the gradient at the parameters before the update.
class GradientCapture {
 public:
  enum class Use {
    kFirst,      ///< first backward of a (new) group
    kContinues,  ///< one more microbatch
    kIgnored,    ///< evaluates another point
    kUnknown,    ///< cannot be told; nothing about this parameter is exact in this step
  };
  /// Called in backward, after a parameter's gradient was accumulated, on backward's thread.
  using Listener = std::function<void(uint32_t parameter, const at::Tensor& delivered, Use use)>;

  GradientCapture(const ModelInfo& model, Listener listener);
  ~GradientCapture();

  /// What is kept of a gradient until the step is observed.
  enum class Keep {
    kNorm,
    /// Sum and sum of squares: enough to see later that `.grad` still is what was delivered,
    /// without a copy. Copies where the fast sums do not apply, or where steps hold several
    /// backwards.
    kFingerprint,
    kCopy,
  };
  /// `sees_writes`: written() will be told of every operator that changes a parameter.
  void install(Keep keep, bool microbatch_norms, bool sees_writes);
  /// Whether steps hold several backward passes, which need written() to be told apart.
  bool needs_writes() const { return several_backwards_; }
  /// An operator changes the parameter in place.
  void written(uint32_t parameter);
  void uninstall();
  void set_paused(bool paused) { paused_ = paused; }

  struct Captured {
    at::Tensor gradient;     ///< as delivered, not unscaled; undefined: none, or not to be had
    at::Tensor norm_sq;      ///< |gradient|^2 where no copy was kept
    at::Tensor fingerprint;  ///< sum_and_square() of the gradient, with Keep::kFingerprint
    std::vector<at::Tensor> microbatch_norm_sq;
    int64_t backwards = 0;  ///< of the group
    bool unknown = false;
    bool cleared = false;  ///< `.grad` is gone already
  };
  /// After uninstall: what was captured, by parameter id. Forgets it.
  std::vector<Captured> take();

 private:
  struct Slot;
  class Hook;
  void delivered(Slot* slot, const at::Tensor& gradient);

  Listener listener_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::atomic<bool> paused_{false};
  bool microbatch_norms_ = false;
  Keep keep_ = Keep::kCopy;
  bool sees_writes_ = false;
  bool several_backwards_ = true;  ///< whether the step before had microbatches; unknown at first
};

}  // namespace tycho
