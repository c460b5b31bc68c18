#pragma once

#include <memory>

namespace tycho {

/// Told when a backward pass begins.
class BackwardListener {
 public:
  virtual ~BackwardListener() = default;
  /// Before any gradient of the pass is accumulated, on the thread that computes it: any thread of
  /// the process, and any network's pass. May be called again in the middle of a pass. No other
  /// call of this listener runs meanwhile. Must not throw.
  virtual void backward_begins() = 0;
};

/// Watches for backward passes from construction to destruction, on all threads: unlike operators,
/// which are watched on one thread, a pass costs one look at its beginning and a fraction of a
/// microsecond for each node. Nothing of the graph is held. May end on any thread; when it has
/// ended, no call of the listener runs any more.
class BackwardWatch {
 public:
  explicit BackwardWatch(BackwardListener* listener);
  ~BackwardWatch();
  BackwardWatch(const BackwardWatch&) = delete;
  BackwardWatch& operator=(const BackwardWatch&) = delete;

 private:
  struct Registration;
  struct Registry;
  static Registry& registry();
  std::shared_ptr<Registration> registration_;
};

}  // namespace tycho
