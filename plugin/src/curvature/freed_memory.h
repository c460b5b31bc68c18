#pragma once

#include <cstdint>

namespace tycho {

/// While one lives, memory that is freed stays with the process. Products allocate and free the
/// same large tensors again and again; glibc's malloc gives them back to the kernel each time, and
/// the page faults on the way back take as long as the computation (docs/performance.md).
///
/// Afterwards glibc's thresholds are the largest that it would have come to by itself: blocks from
/// 32 MiB on are mapped, and 64 MiB of free memory are kept. Does nothing where the environment
/// sets them, nor without glibc. Any thread.
class FreedMemory {
 public:
  FreedMemory();
  ~FreedMemory();
  FreedMemory(const FreedMemory&) = delete;
  FreedMemory& operator=(const FreedMemory&) = delete;
};

/// Bytes that malloc holds free, of all threads. The largest number where it cannot be asked: other
/// libraries than glibc from 2.33 on. Some microseconds.
int64_t free_bytes();

}  // namespace tycho
