#include "run_delay.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

namespace tycho {

double RunDelay::parse(std::string_view schedstat) {
  // Nanoseconds on a core, nanoseconds ready to run, number of times.
  const size_t space = schedstat.find(' ');
  if (space == std::string_view::npos) return -1;
  const char* begin = schedstat.data() + space + 1;
  const char* end = schedstat.data() + schedstat.size();
  unsigned long long nanoseconds = 0;
  const auto [rest, error] = std::from_chars(begin, end, nanoseconds);
  if (error != std::errc() || rest == end || *rest != ' ') return -1;
  return 1e-9 * static_cast<double>(nanoseconds);
}

void RunDelay::forget() {
  if (file_ >= 0) ::close(file_);
  file_ = -1;
  last_ = -1;
}

double RunDelay::take() {
  const auto thread = static_cast<pid_t>(::syscall(SYS_gettid));
  if (thread != thread_) {
    forget();
    thread_ = thread;
    file_ = ::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  }
  if (file_ < 0) return 0;
  char text[128];
  const ssize_t size = ::pread(file_, text, sizeof text, 0);
  const double now = parse({text, static_cast<size_t>(std::max<ssize_t>(size, 0))});
  if (now < 0) return 0;
  const double before = last_ < 0 ? now : last_;
  last_ = now;
  return std::max(now - before, 0.0);
}

}  // namespace tycho
