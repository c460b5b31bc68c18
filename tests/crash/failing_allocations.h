#pragma once

#include <cstdint>

// Linked into a test program, this replaces operator new and LibTorch's allocator of CPU tensors,
// so that one allocation can be made to fail.
namespace failing {

/// Who allocates. Allocations of the trainer's own belong to nobody here and never fail.
enum Phase {
  kConstruct,  ///< making a session and giving it what it needs
  kStep,       ///< Session::step, until it evaluates a loss for the first time
  kEvaluate,   ///< the rest of that Session::step
  kClose,      ///< Session::close and the destructor
  kHooks,      ///< what a session installed in the trainer's forward and backward passes
  kWriter,     ///< the session's writing thread
  kNeverFails,
  kPhases
};

/// Says that the calling thread trains: hooks run on it. Once.
void this_is_the_trainer();

/// From now on allocation `number` (from 0) of the phase fails, once. Counters begin anew.
void arm(Phase phase, int64_t number);
/// Nothing fails. Whether something did.
bool disarm();
/// Allocations of the phase since arm().
int64_t count(Phase phase);

/// While one lives, what this thread allocates belongs to a phase.
class Inside {
 public:
  explicit Inside(Phase phase);
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  int before_;
};
/// From kStep to kEvaluate, for the Inside that lives.
void evaluation_begins();

}  // namespace failing
