#include "parameter_sums.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "vector_lanes.h"

namespace tycho {
namespace {

using lanes::Doubles;
using lanes::Floats;
using lanes::kLanes;
using lanes::total;

constexpr int64_t kBlock = 1 << 15;  // elements per partial sum, whatever the number of threads

struct Sums {
  double value[kParameterSums] = {};
};

void accumulate(double weight, double gradient, double previous, Sums* sums) {
  const double update = weight - previous;
  sums->value[kWeightSquare] += previous * previous;
  sums->value[kGradientSquare] += gradient * gradient;
  sums->value[kUpdateSquare] += update * update;
  sums->value[kWeightGradient] += previous * gradient;
  sums->value[kWeightUpdate] += previous * update;
  sums->value[kGradientUpdate] += gradient * update;
}

// One function per dtype: function multiversioning does not go together with templates.
#define TYCHO_SUM_BLOCK(name, type, lanes_type)                                                   \
  TYCHO_CLONES void name(const type* weight, const type* gradient, type* previous, int64_t count, \
                         bool refresh, Sums* sums) {                                              \
    Doubles ww{}, gg{}, uu{}, wg{}, wu{}, gu{};                                                   \
    int64_t i = 0;                                                                                \
    for (; i + kLanes <= count; i += kLanes) {                                                    \
      lanes_type raw_weight, raw_gradient, raw_previous;                                          \
      std::memcpy(&raw_weight, weight + i, sizeof(raw_weight));                                   \
      std::memcpy(&raw_gradient, gradient + i, sizeof(raw_gradient));                             \
      std::memcpy(&raw_previous, previous + i, sizeof(raw_previous));                             \
      const Doubles w = __builtin_convertvector(raw_previous, Doubles);                           \
      const Doubles g = __builtin_convertvector(raw_gradient, Doubles);                           \
      const Doubles u = __builtin_convertvector(raw_weight, Doubles) - w;                         \
      ww += w * w;                                                                                \
      gg += g * g;                                                                                \
      uu += u * u;                                                                                \
      wg += w * g;                                                                                \
      wu += w * u;                                                                                \
      gu += g * u;                                                                                \
      if (refresh) std::memcpy(previous + i, &raw_weight, sizeof(raw_weight));                    \
    }                                                                                             \
    sums->value[kWeightSquare] = total(ww);                                                       \
    sums->value[kGradientSquare] = total(gg);                                                     \
    sums->value[kUpdateSquare] = total(uu);                                                       \
    sums->value[kWeightGradient] = total(wg);                                                     \
    sums->value[kWeightUpdate] = total(wu);                                                       \
    sums->value[kGradientUpdate] = total(gu);                                                     \
    for (; i < count; ++i) {                                                                      \
      accumulate(weight[i], gradient[i], previous[i], sums);                                      \
      if (refresh) previous[i] = weight[i];                                                       \
    }                                                                                             \
  }
TYCHO_SUM_BLOCK(sum_block, float, Floats)
TYCHO_SUM_BLOCK(sum_block_double, double, Doubles)
#undef TYCHO_SUM_BLOCK

void sum_block(const double* weight, const double* gradient, double* previous, int64_t count,
               bool refresh, Sums* sums) {
  sum_block_double(weight, gradient, previous, count, refresh, sums);
}

/// half and bfloat16: converted in pieces that stay in the first-level cache.
template <typename T>
void sum_block(const T* weight, const T* gradient, T* previous, int64_t count, bool refresh,
               Sums* sums) {
  constexpr int64_t kPiece = 1024;
  float buffer[3][kPiece];
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t size = std::min(kPiece, count - begin);
    for (int64_t i = 0; i < size; ++i) {
      buffer[0][i] = static_cast<float>(weight[begin + i]);
      buffer[1][i] = static_cast<float>(gradient[begin + i]);
      buffer[2][i] = static_cast<float>(previous[begin + i]);
    }
    Sums piece;
    sum_block(buffer[0], buffer[1], buffer[2], size, false, &piece);
    for (int s = 0; s < kParameterSums; ++s) sums->value[s] += piece.value[s];
    if (refresh) std::copy(weight + begin, weight + begin + size, previous + begin);
  }
}

template <typename T>
void sum_tensor(const SumsInput& input, bool refresh, double* row) {
  const int64_t count = input.weight.numel();
  const T* weight = input.weight.data_ptr<T>();
  const T* gradient = input.gradient.defined() ? input.gradient.data_ptr<T>() : weight;
  T* previous = input.previous.defined() ? input.previous.data_ptr<T>() : const_cast<T*>(weight);
  const bool write = refresh && input.previous.defined();
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const auto run = [&](int64_t block) {
    Sums sums;
    const int64_t begin = block * kBlock;
    sum_block(weight + begin, gradient + begin, previous + begin, std::min(kBlock, count - begin),
              write, &sums);
    return sums;
  };
  Sums sums;
  if (blocks <= 1) {
    if (blocks == 1) sums = run(0);
  } else {
    std::vector<Sums> partial(static_cast<size_t>(blocks));
    at::parallel_for(0, blocks, 2, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) partial[block] = run(block);
    });
    for (const Sums& part : partial) {
      for (int s = 0; s < kParameterSums; ++s) sums.value[s] += part.value[s];
    }
  }
  std::copy(sums.value, sums.value + kParameterSums, row);
}

bool fits_fast_path(const SumsInput& input) {
  const at::Tensor& weight = input.weight;
  const auto alike = [&](const at::Tensor& other) {
    return !other.defined() ||
           (other.device().is_cpu() && other.layout() == at::kStrided &&
            other.scalar_type() == weight.scalar_type() && other.sizes() == weight.sizes() &&
            other.strides() == weight.strides());
  };
  return weight.device().is_cpu() && weight.layout() == at::kStrided &&
         weight.is_non_overlapping_and_dense() && alike(input.gradient) && alike(input.previous);
}

void forget_missing(const SumsInput& input, double* row) {
  const double missing = std::numeric_limits<double>::quiet_NaN();
  if (!input.gradient.defined()) {
    row[kGradientSquare] = row[kWeightGradient] = row[kGradientUpdate] = missing;
  }
  if (!input.previous.defined()) {
    row[kUpdateSquare] = row[kWeightUpdate] = row[kGradientUpdate] = missing;
  }
}

/// Any device, dtype and layout.
at::Tensor sum_row(const SumsInput& input, bool refresh) {
  const at::Tensor after = input.weight.detach().to(at::kDouble);
  const at::Tensor weight = input.previous.defined() ? input.previous.to(at::kDouble) : after;
  const at::Tensor missing =
      at::full({}, std::numeric_limits<double>::quiet_NaN(), after.options());
  at::Tensor gradient, update;
  if (input.gradient.defined()) {
    gradient = input.gradient.is_sparse() ? input.gradient.to_dense() : input.gradient;
    gradient = gradient.to(after.options());
  }
  if (input.previous.defined()) update = after - weight;
  const auto product = [&](const at::Tensor& left, const at::Tensor& right) {
    return left.defined() && right.defined() ? (left * right).sum() : missing;
  };
  const at::Tensor row =
      at::stack({product(weight, weight), product(gradient, gradient), product(update, update),
                 product(weight, gradient), product(weight, update), product(gradient, update)});
  if (refresh && input.previous.defined()) input.previous.copy_(input.weight.detach());
  return row;
}

}  // namespace

at::Tensor parameter_sums(const std::vector<SumsInput>& inputs, bool refresh) {
  const auto rows = static_cast<int64_t>(inputs.size());
  const bool fast = std::all_of(inputs.begin(), inputs.end(), fits_fast_path);
  if (!fast) {
    std::vector<at::Tensor> parts;
    parts.reserve(inputs.size());
    bool one_device = true;
    for (const SumsInput& input : inputs) {
      parts.push_back(sum_row(input, refresh));
      one_device = one_device && parts.back().device() == parts.front().device();
    }
    if (parts.empty()) return at::empty({0, kParameterSums}, at::kDouble);
    if (!one_device) {
      for (at::Tensor& part : parts) part = part.to(at::kCPU);
    }
    return at::stack(parts);
  }
  at::Tensor result = at::empty({rows, kParameterSums}, at::kDouble);
  double* row = result.data_ptr<double>();
  for (const SumsInput& input : inputs) {
    switch (input.weight.scalar_type()) {
      case at::kFloat:
        sum_tensor<float>(input, refresh, row);
        break;
      case at::kDouble:
        sum_tensor<double>(input, refresh, row);
        break;
      case at::kHalf:
        sum_tensor<at::Half>(input, refresh, row);
        break;
      case at::kBFloat16:
        sum_tensor<at::BFloat16>(input, refresh, row);
        break;
      default: {
        const at::Tensor slow = sum_row(input, refresh);
        std::copy_n(slow.data_ptr<double>(), static_cast<int64_t>(kParameterSums), row);
      }
    }
    forget_missing(input, row);
    row += kParameterSums;
  }
  return result;
}

}  // namespace tycho
