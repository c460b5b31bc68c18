#include "tensor_sums.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "vector_lanes.h"

namespace tycho {
namespace {

using lanes::Doubles;
using lanes::Floats;
using lanes::kBlock;
using lanes::kLanes;

// Two chains of additions, because one waits for itself.
#define TYCHO_DOT(name, type, lanes_type)                                                       \
  TYCHO_CLONES double name(const type* left, const type* right, int64_t count) {                \
    Doubles even{}, odd{};                                                                      \
    int64_t i = 0;                                                                              \
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {                                          \
      lanes_type a, b, c, d;                                                                    \
      std::memcpy(&a, left + i, sizeof(a));                                                     \
      std::memcpy(&b, right + i, sizeof(b));                                                    \
      std::memcpy(&c, left + i + kLanes, sizeof(c));                                            \
      std::memcpy(&d, right + i + kLanes, sizeof(d));                                           \
      even += __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles);        \
      odd += __builtin_convertvector(c, Doubles) * __builtin_convertvector(d, Doubles);         \
    }                                                                                           \
    double sum = lanes::total(even) + lanes::total(odd);                                        \
    for (; i < count; ++i) sum += static_cast<double>(left[i]) * static_cast<double>(right[i]); \
    return sum;                                                                                 \
  }
TYCHO_DOT(dot_float, float, Floats)
TYCHO_DOT(dot_double, double, Doubles)
#undef TYCHO_DOT

#define TYCHO_MOMENTS(name, type, lanes_type)                               \
  TYCHO_CLONES void name(const type* values, int64_t count, double* sums) { \
    Doubles plain{}, square{};                                              \
    int64_t i = 0;                                                          \
    for (; i + kLanes <= count; i += kLanes) {                              \
      lanes_type raw;                                                       \
      std::memcpy(&raw, values + i, sizeof(raw));                           \
      const Doubles x = __builtin_convertvector(raw, Doubles);              \
      plain += x;                                                           \
      square += x * x;                                                      \
    }                                                                       \
    sums[0] = lanes::total(plain);                                          \
    sums[1] = lanes::total(square);                                         \
    for (; i < count; ++i) {                                                \
      const double x = values[i];                                           \
      sums[0] += x;                                                         \
      sums[1] += x * x;                                                     \
    }                                                                       \
  }
TYCHO_MOMENTS(moments_float, float, Floats)
TYCHO_MOMENTS(moments_double, double, Doubles)
#undef TYCHO_MOMENTS

#define TYCHO_CROSS(name, type, lanes_type)                                                  \
  TYCHO_CLONES void name(const type* left, const type* right, int64_t count, double* sums) { \
    Doubles l{}, lr{}, r{}, rr{};                                                            \
    int64_t i = 0;                                                                           \
    for (; i + kLanes <= count; i += kLanes) {                                               \
      lanes_type raw_left, raw_right;                                                        \
      std::memcpy(&raw_left, left + i, sizeof(raw_left));                                    \
      std::memcpy(&raw_right, right + i, sizeof(raw_right));                                 \
      const Doubles x = __builtin_convertvector(raw_left, Doubles);                          \
      const Doubles y = __builtin_convertvector(raw_right, Doubles);                         \
      l += x;                                                                                \
      lr += x * y;                                                                           \
      r += y;                                                                                \
      rr += y * y;                                                                           \
    }                                                                                        \
    sums[0] = lanes::total(l);                                                               \
    sums[1] = lanes::total(lr);                                                              \
    sums[2] = lanes::total(r);                                                               \
    sums[3] = lanes::total(rr);                                                              \
    for (; i < count; ++i) {                                                                 \
      const double x = left[i];                                                              \
      const double y = right[i];                                                             \
      sums[0] += x;                                                                          \
      sums[1] += x * y;                                                                      \
      sums[2] += y;                                                                          \
      sums[3] += y * y;                                                                      \
    }                                                                                        \
  }
TYCHO_CROSS(cross_float, float, Floats)
TYCHO_CROSS(cross_double, double, Doubles)
#undef TYCHO_CROSS

void cross(const float* left, const float* right, int64_t count, double* sums) {
  cross_float(left, right, count, sums);
}
void cross(const double* left, const double* right, int64_t count, double* sums) {
  cross_double(left, right, count, sums);
}
double dot(const float* left, const float* right, int64_t count) {
  return dot_float(left, right, count);
}
double dot(const double* left, const double* right, int64_t count) {
  return dot_double(left, right, count);
}
void moments(const float* values, int64_t count, double* sums) {
  moments_float(values, count, sums);
}
void moments(const double* values, int64_t count, double* sums) {
  moments_double(values, count, sums);
}

bool is_fast(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided &&
         (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble);
}

/// Sums over blocks, in their order.
template <typename PerBlock>
void sum_blocks(int64_t count, int64_t width, double* result, const PerBlock& per_block) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  if (blocks <= 1) {
    if (blocks == 1) per_block(0, count, result);
    return;
  }
  std::vector<double> partial(static_cast<size_t>(blocks * width));
  at::parallel_for(0, blocks, 2, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      per_block(block * kBlock, std::min(count, (block + 1) * kBlock),
                partial.data() + block * width);
    }
  });
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < width; ++i)
      result[i] += partial[static_cast<size_t>(block * width + i)];
  }
}

template <typename T>
double squared(const at::Tensor& tensor) {
  const T* values = tensor.data_ptr<T>();
  double result = 0;
  sum_blocks(tensor.numel(), 1, &result, [&](int64_t begin, int64_t end, double* sum) {
    *sum = dot(values + begin, values + begin, end - begin);
  });
  return result;
}

template <typename T>
void sums(const at::Tensor& tensor, double* result) {
  const T* values = tensor.data_ptr<T>();
  sum_blocks(tensor.numel(), 2, result, [&](int64_t begin, int64_t end, double* sum) {
    moments(values + begin, end - begin, sum);
  });
}

/// Calls per_row(row, begin of the row's elements) for all rows of a contiguous tensor.
template <typename PerRow>
void for_rows(int64_t rows, int64_t columns, const PerRow& per_row) {
  const int64_t grain = std::max<int64_t>(1, kBlock / std::max<int64_t>(columns, 1));
  at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) per_row(row, row * columns);
  });
}

template <typename T>
void moments_of_rows(const at::Tensor& tensor, double* result) {
  const int64_t rows = tensor.size(0);
  const int64_t columns = rows > 0 ? tensor.numel() / rows : 0;
  const T* values = tensor.data_ptr<T>();
  for_rows(rows, columns,
           [&](int64_t row, int64_t begin) { moments(values + begin, columns, result + 2 * row); });
}

template <typename T>
void cross_of_rows(const at::Tensor& x, const at::Tensor& y, double* result) {
  const int64_t rows = x.size(0);
  const int64_t columns = rows > 0 ? x.numel() / rows : 0;
  const T* a = x.data_ptr<T>();
  const T* b = y.data_ptr<T>();
  for_rows(rows, columns, [&](int64_t row, int64_t begin) {
    cross(a + begin, b + begin, columns, result + 4 * row);
  });
}

template <typename T>
void products(const at::Tensor& left, const at::Tensor& right, double* result) {
  const int64_t rows = left.size(0);
  const int64_t columns = rows > 0 ? left.numel() / rows : 0;
  const T* a = left.data_ptr<T>();
  const T* b = right.data_ptr<T>();
  for_rows(rows, columns,
           [&](int64_t row, int64_t begin) { result[row] = dot(a + begin, b + begin, columns); });
}

}  // namespace

bool sums_fast(const at::Tensor& tensor) {
  return is_fast(tensor) && tensor.is_non_overlapping_and_dense();
}

at::Tensor squared_norm(const at::Tensor& tensor) {
  if (sums_fast(tensor)) {
    return at::scalar_tensor(
        tensor.scalar_type() == at::kFloat ? squared<float>(tensor) : squared<double>(tensor),
        at::kDouble);
  }
  if (tensor.is_sparse()) return squared_norm(tensor.coalesce().values());
  if (tensor.is_complex()) return squared_norm(at::view_as_real(tensor.resolve_conj()));
  if (tensor.numel() == 0) return at::zeros({}, tensor.options().dtype(at::kDouble));
  return at::linalg_vector_norm(tensor, 2, c10::nullopt, false, at::kDouble).square();
}

double norm_of(const at::Tensor& tensor) { return std::sqrt(squared_norm(tensor).item<double>()); }

at::Tensor sum_and_square(const at::Tensor& tensor) {
  if (sums_fast(tensor)) {
    const at::Tensor result = at::zeros({2}, at::kDouble);
    if (tensor.scalar_type() == at::kFloat) {
      sums<float>(tensor, result.data_ptr<double>());
    } else {
      sums<double>(tensor, result.data_ptr<double>());
    }
    return result;
  }
  return at::stack({tensor.sum(at::kDouble), squared_norm(tensor)});
}

at::Tensor row_moments(const at::Tensor& rows) {
  if (is_fast(rows)) {
    const at::Tensor values = rows.contiguous();
    const at::Tensor result = at::zeros({rows.size(0), 2}, at::kDouble);
    if (rows.scalar_type() == at::kFloat) {
      moments_of_rows<float>(values, result.data_ptr<double>());
    } else {
      moments_of_rows<double>(values, result.data_ptr<double>());
    }
    return result;
  }
  const at::Tensor flat = rows.reshape({rows.size(0), -1});
  return at::stack({flat.sum({1}, false, at::kDouble), row_products(flat, flat)}, 1);
}

at::Tensor row_cross_moments(const at::Tensor& x, const at::Tensor& y) {
  if (is_fast(x) && is_fast(y) && x.scalar_type() == y.scalar_type()) {
    const at::Tensor a = x.contiguous();
    const at::Tensor b = y.contiguous();
    const at::Tensor result = at::zeros({x.size(0), 4}, at::kDouble);
    if (x.scalar_type() == at::kFloat) {
      cross_of_rows<float>(a, b, result.data_ptr<double>());
    } else {
      cross_of_rows<double>(a, b, result.data_ptr<double>());
    }
    return result;
  }
  const at::Tensor of_y = row_moments(y);
  const at::Tensor flat = x.reshape({x.size(0), -1});
  return at::stack(
      {flat.sum({1}, false, at::kDouble), row_products(x, y), of_y.select(1, 0), of_y.select(1, 1)},
      1);
}

at::Tensor row_products(const at::Tensor& left, const at::Tensor& right) {
  if (is_fast(left) && is_fast(right) && left.scalar_type() == right.scalar_type()) {
    const at::Tensor a = left.contiguous();
    const at::Tensor b = left.is_same(right) ? a : right.contiguous();
    const at::Tensor result = at::zeros({left.size(0)}, at::kDouble);
    if (left.scalar_type() == at::kFloat) {
      products<float>(a, b, result.data_ptr<double>());
    } else {
      products<double>(a, b, result.data_ptr<double>());
    }
    return result;
  }
  if (left.is_same(right)) {
    const at::Tensor flat = left.reshape({left.size(0), -1});
    return at::linalg_vector_norm(flat, 2, at::IntArrayRef{1}, false, at::kDouble).square();
  }
  return (left * right).reshape({left.size(0), -1}).sum({1}, false, at::kDouble);
}

}  // namespace tycho
