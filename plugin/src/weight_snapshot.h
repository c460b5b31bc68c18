#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "backward_watch.h"
#include "tycho/probe.h"

namespace tycho {

/// Copies of the weights as they are before the optimizer's update, so that the update of a step is
/// what the optimizer did and nothing else: not a checkpoint that was loaded, an average over
/// workers, or a clamp between two steps. Copies are taken when a step is prepared, and compared
/// with the weights when the step's first backward pass begins; what differs then was changed by
/// somebody else, and is copied again.
///
/// Comparing reads weights and copies once, on the CPU, on the training thread. On other devices it
/// would wait: there everything is copied again, and a change is noticed where the data pointer or
/// the version counter tells it.
class WeightSnapshot : private BackwardListener {
 public:
  /// `model` outlives this.
  explicit WeightSnapshot(const ModelInfo& model) : model_(model) {}
  ~WeightSnapshot() override = default;

  /// Copies all weights.
  void take();
  bool valid() const { return valid_; }
  void invalidate() { valid_ = false; }
  /// By parameter id, where valid(); undefined where the parameter has another shape, dtype or
  /// device than the copy.
  at::Tensor of(uint32_t parameter) const;

  /// Watches for the step's first backward pass. Before, the weights that are there now are noted
  /// as those that the session left.
  void watch();
  void set_paused(bool paused) { paused_ = paused; }
  /// Watches no longer. Ids of the parameters that had changed by then, ascending.
  std::vector<uint32_t> changed();

 private:
  struct Seen {
    const void* data = nullptr;
    int64_t version = 0;
  };
  static Seen seen_of(const at::Tensor& parameter);
  static bool fits(const at::Tensor& copy, const at::Tensor& weight);
  void backward_begins() override;
  void compare(const ParameterInfo& parameter);

  const ModelInfo& model_;
  bool valid_ = false;
  std::vector<at::Tensor> copies_;
  std::vector<Seen> seen_;
  std::vector<uint32_t> changed_;
  std::atomic<bool> paused_{false};
  std::thread::id watcher_;
  bool compared_ = false;
  bool compared_by_watcher_ = false;
  std::unique_ptr<BackwardWatch> watch_;
};

}  // namespace tycho
