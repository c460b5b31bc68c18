#include "matrix/kernels.h"

#include <algorithm>
#include <cstring>

#include "vector_lanes.h"

namespace tycho::kernels {
namespace {

using lanes::Doubles;
using lanes::Floats;
using lanes::kLanes;

// Always inlined, so that each clone has its own; vectors are not passed by value, because how that
// is done depends on the instruction set.
#define TYCHO_INLINE inline __attribute__((always_inline))

template <typename Vector, typename Number>
TYCHO_INLINE void multiply_add(const Number* x, const Number* y, Vector* sum) {
  Vector left;
  Vector right;
  std::memcpy(&left, x, sizeof(left));
  std::memcpy(&right, y, sizeof(right));
  *sum += left * right;
}

template <typename Vector, typename Number>
TYCHO_INLINE Number inner(const Number* x, const Number* y, int64_t n) {
  Vector first{};
  Vector second{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    multiply_add(x + i, y + i, &first);
    multiply_add(x + i + kLanes, y + i + kLanes, &second);
  }
  first += second;
  Number sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += first[lane];
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

template <typename Vector, typename Number>
TYCHO_INLINE void accumulate(Number factor, const Number* x, Number* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Vector term;
    Vector sum;
    std::memcpy(&term, x + i, sizeof(term));
    std::memcpy(&sum, y + i, sizeof(sum));
    sum += factor * term;
    std::memcpy(y + i, &sum, sizeof(sum));
  }
  for (; i < n; ++i) y[i] += factor * x[i];
}

#undef TYCHO_INLINE

}  // namespace

TYCHO_CLONES double dot(const double* x, const double* y, int64_t n) {
  return inner<Doubles>(x, y, n);
}

TYCHO_CLONES void add(double factor, const double* x, double* y, int64_t n) {
  accumulate<Doubles>(factor, x, y, n);
}

TYCHO_CLONES void gram_of_columns(const float* a, int64_t rows, int64_t columns, const float* v,
                                  float* result) {
  std::fill(result, result + columns, 0.0F);
  for (int64_t row = 0; row < rows; ++row, a += columns) {
    accumulate<Floats>(inner<Floats>(a, v, columns), a, result, columns);
  }
}

TYCHO_CLONES void gram_of_rows(const float* a, int64_t rows, int64_t columns, const float* v,
                               float* scratch, float* result) {
  std::fill(scratch, scratch + columns, 0.0F);
  for (int64_t row = 0; row < rows; ++row) {
    accumulate<Floats>(v[row], a + row * columns, scratch, columns);
  }
  for (int64_t row = 0; row < rows; ++row) {
    result[row] = inner<Floats>(a + row * columns, scratch, columns);
  }
}

}  // namespace tycho::kernels
