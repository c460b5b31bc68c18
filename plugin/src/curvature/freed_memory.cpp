#include "curvature/freed_memory.h"

#include <cstdlib>
#include <limits>
#include <mutex>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace tycho {
#ifdef __GLIBC__
namespace {

constexpr int kMapFrom = 32 << 20;  // the most that glibc takes
constexpr int kKeep = 2 * kMapFrom;

bool left_to_us() {
  static const bool ours = [] {
    for (const char* name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_",
                             "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"}) {
      if (std::getenv(name) != nullptr) return false;
    }
    return true;
  }();
  return ours;
}

std::mutex& mutex() {
  static std::mutex one;
  return one;
}
int living = 0;

void keep(int bytes) {
  mallopt(M_MMAP_THRESHOLD, kMapFrom);
  mallopt(M_TRIM_THRESHOLD, bytes);
}

}  // namespace

FreedMemory::FreedMemory() {
  if (!left_to_us()) return;
  const std::lock_guard<std::mutex> lock(mutex());
  if (living++ == 0) keep(std::numeric_limits<int>::max());
}

FreedMemory::~FreedMemory() {
  if (!left_to_us()) return;
  const std::lock_guard<std::mutex> lock(mutex());
  if (--living == 0) keep(kKeep);
}
#else
FreedMemory::FreedMemory() = default;
FreedMemory::~FreedMemory() = default;
#endif

int64_t free_bytes() {
#ifdef __GLIBC__
#if __GLIBC_PREREQ(2, 33)
  const size_t bytes = mallinfo2().fordblks;
  // Of another library that took malloc's place nothing is known.
  if (bytes > 0) return static_cast<int64_t>(bytes);
#endif
#endif
  return std::numeric_limits<int64_t>::max();
}

}  // namespace tycho
