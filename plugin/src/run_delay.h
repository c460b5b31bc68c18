#pragma once

#include <sys/types.h>

#include <string_view>

namespace tycho {

/// The time for which the calling thread was ready to run but the kernel ran something else on its
/// core, as Linux counts it in /proc/thread-self/schedstat. Waiting for a disk, a lock, another
/// thread or a device is not in it. Of one thread at a time; 10 us a call.
class RunDelay {
 public:
  RunDelay() = default;
  ~RunDelay() { forget(); }
  RunDelay(const RunDelay&) = delete;
  RunDelay& operator=(const RunDelay&) = delete;

  /// Seconds since the last call. 0 at the first call, at the first one on another thread or in a
  /// forked process, and where the kernel does not count.
  double take();

  /// Seconds, of the text of a schedstat file; negative where it is none.
  static double parse(std::string_view schedstat);

 private:
  void forget();

  int file_ = -1;
  pid_t thread_ = 0;  // whose file it is
  double last_ = -1;  // negative: unknown
};

}  // namespace tycho
