#pragma once

#include <optional>

#include "tycho/v1/record.pb.h"
#include "work_meter.h"

namespace tycho {

/// What a session has cost, from the beginning of its construction: wall time and CPU time in its
/// calls, in its hooks within forward and backward passes, and of its writing thread, beside the
/// time of the whole process. Books of one session; hooks report from any thread, all else is of
/// the session's thread.
class CostBooks {
 public:
  /// Now the construction of the session begins; it is a call.
  CostBooks();
  /// The construction has ended. Returns its seconds.
  double constructed();

  /// A call of the session, as long as it lives; a call within a call is part of it. `exact`: its
  /// CPU time is read, not extrapolated: for the few calls that are unlike the others.
  class Call {
   public:
    explicit Call(CostBooks* books, bool exact = false);
    ~Call() { --books_->depth_; }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    CostBooks* books_;
    WorkMeter::Stretch stretch_;
  };

  WorkMeter* gradient_hooks() { return &gradient_hooks_; }
  WorkMeter* operator_hooks() { return &operator_hooks_; }

  struct Hooks {
    double gradients = 0;
    double operators = 0;
    double total() const { return gradients + operators; }
  };
  /// Wall seconds in hooks since the last call.
  Hooks take_hooks();

  /// What is not known here.
  struct Rest {
    double slowdown = 0;          ///< seconds that hooks slowed training down beyond their own time
    bool slowdown_known = false;  ///< else there may be more, if there were hooks
    double writer_cpu = 0;        ///< seconds of CPU time of the writing thread
  };
  /// Sets the fields of cost, of the session so far.
  void report(const Rest& rest, v1::Health* health);

 private:
  WorkMeter::Clock::time_point birth_;
  double cpu_at_birth_;
  int depth_ = 0;
  WorkMeter calls_;
  WorkMeter gradient_hooks_;
  WorkMeter operator_hooks_;
  Hooks taken_;
  std::optional<Call> construction_;
};

}  // namespace tycho
