#pragma once

#include <cstdint>

// float64 sums with vector extensions, because a compiler may not reorder them by itself.

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
/// Compiles a function for several instruction sets, chosen when the program is loaded.
#define TYCHO_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define TYCHO_CLONES
#endif

namespace tycho::lanes {

constexpr int kLanes = 8;
/// Elements per partial sum, whatever the number of threads.
constexpr int64_t kBlock = 1 << 15;
typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));

inline double total(const Doubles& lanes) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

}  // namespace tycho::lanes
