#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "work_meter.h"

namespace at {
struct RecordFunction;
}

namespace tycho {

/// Receives the outermost operators of forward passes with gradients enabled. Must not throw; is
/// called with gradients disabled and the observation of operators off.
class OperatorListener {
 public:
  virtual ~OperatorListener() = default;
  /// Before the operator runs. False: after() is not wanted.
  virtual bool before(const char* name, c10::ArrayRef<const c10::IValue> inputs) = 0;
  /// The same for listeners that need more of the call than its name: these override this one.
  virtual bool before_call(const at::RecordFunction& call, c10::ArrayRef<const c10::IValue> inputs);
  /// After the operator of the last before() that returned true. Outputs still have their grad_fn.
  virtual void after(const std::vector<c10::IValue>& outputs) = 0;
  /// Before an operator that writes to its first argument in place runs, gradients
  /// enabled or not: optimizers do. `.data()` hides such writes from the version counter.
  virtual void writes(const c10::IValue& target) = 0;
};

/// While it lives, `listener` sees the operators of the thread that made it, those that run with
/// gradients disabled only where they write in place. Several may live at once. It may end on any
/// thread: when it has ended, no call of the listener runs any more. The time that the listener
/// takes is added to `meter`, which must live as long.
class OperatorWatch {
 public:
  explicit OperatorWatch(OperatorListener* listener, WorkMeter* meter = nullptr);
  ~OperatorWatch();
  OperatorWatch(const OperatorWatch&) = delete;
  OperatorWatch& operator=(const OperatorWatch&) = delete;

  /// Whether the calling thread is the one that is watched.
  bool on_this_thread() const;

  struct Registration;

 private:
  std::shared_ptr<Registration> registration_;
};

/// While it lives, `listener` alone sees the operators of this thread, gradients enabled or not:
/// other listeners and callbacks of the thread see nothing, also where observation was off. Ended
/// on the thread that made it; scopes nest. Callbacks that the program added for all threads still
/// see the operators.
class ExclusiveOperatorWatch {
 public:
  explicit ExclusiveOperatorWatch(OperatorListener* listener);
  ~ExclusiveOperatorWatch();
  ExclusiveOperatorWatch(const ExclusiveOperatorWatch&) = delete;
  ExclusiveOperatorWatch& operator=(const ExclusiveOperatorWatch&) = delete;

 private:
  void restore() noexcept;

  struct Saved;
  std::unique_ptr<Saved> saved_;
};

}  // namespace tycho
