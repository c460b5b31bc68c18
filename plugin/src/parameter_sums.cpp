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
using lanes::kBlock;
using lanes::kLanes;
using lanes::total;

struct Sums {
  double value[kParameterSums] = {};
  double gradient = 0;  // sum of g
};

void accumulate(double weight, double gradient, double previous, Sums* sums) {
  const double update = weight - previous;
  sums->value[kWeightSquare] += previous * previous;
  sums->value[kGradientSquare] += gradient * gradient;
  sums->value[kUpdateSquare] += update * update;
  sums->value[kWeightGradient] += previous * gradient;
  sums->value[kWeightUpdate] += previous * update;
  sums->value[kGradientUpdate] += gradient * update;
  sums->gradient += gradient;
}

// One function per dtype: function multiversioning does not go together with templates.
#define TYCHO_SUM_BLOCK(name, type, lanes_type)                                                   \
  TYCHO_CLONES void name(const type* weight, const type* gradient, type* previous, int64_t count, \
                         bool refresh, Sums* sums) {                                              \
    Doubles ww{}, gg{}, uu{}, wg{}, wu{}, gu{}, gradients{};                                      \
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
      gradients += g;                                                                             \
      if (refresh) std::memcpy(previous + i, &raw_weight, sizeof(raw_weight));                    \
    }                                                                                             \
    sums->value[kWeightSquare] = total(ww);                                                       \
    sums->value[kGradientSquare] = total(gg);                                                     \
    sums->value[kUpdateSquare] = total(uu);                                                       \
    sums->value[kWeightGradient] = total(wg);                                                     \
    sums->value[kWeightUpdate] = total(wu);                                                       \
    sums->value[kGradientUpdate] = total(gu);                                                     \
    sums->gradient = total(gradients);                                                            \
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
    sums->gradient += piece.gradient;
    if (refresh) std::copy(weight + begin, weight + begin + size, previous + begin);
  }
}

template <typename T>
Sums sum_block_of(const SumsInput& input, int64_t begin, bool refresh) {
  const T* weight = input.weight.data_ptr<T>();
  const T* gradient = input.gradient.defined() ? input.gradient.data_ptr<T>() : weight;
  T* previous = input.previous.defined() ? input.previous.data_ptr<T>() : const_cast<T*>(weight);
  Sums sums;
  sum_block(weight + begin, gradient + begin, previous + begin,
            std::min(kBlock, input.weight.numel() - begin), refresh && input.previous.defined(),
            &sums);
  return sums;
}

Sums sum_block_of(const SumsInput& input, int64_t begin, bool refresh) {
  switch (input.weight.scalar_type()) {
    case at::kFloat:
      return sum_block_of<float>(input, begin, refresh);
    case at::kDouble:
      return sum_block_of<double>(input, begin, refresh);
    case at::kHalf:
      return sum_block_of<at::Half>(input, begin, refresh);
    default:
      return sum_block_of<at::BFloat16>(input, begin, refresh);
  }
}

bool fits_fast_path(const SumsInput& input) {
  const at::Tensor& weight = input.weight;
  const auto alike = [&](const at::Tensor& other) {
    return !other.defined() ||
           (other.device().is_cpu() && other.layout() == at::kStrided &&
            other.scalar_type() == weight.scalar_type() && other.sizes() == weight.sizes() &&
            other.strides() == weight.strides());
  };
  const at::ScalarType type = weight.scalar_type();
  return (type == at::kFloat || type == at::kDouble || type == at::kHalf ||
          type == at::kBFloat16) &&
         weight.device().is_cpu() && weight.layout() == at::kStrided &&
         weight.is_non_overlapping_and_dense() && alike(input.gradient) && alike(input.previous);
}

// NaN too is the same where it is the same NaN.
bool same_bits(double left, double right) { return std::memcmp(&left, &right, sizeof(left)) == 0; }

void forget_missing(bool gradient, bool previous, double* row) {
  const double missing = std::numeric_limits<double>::quiet_NaN();
  if (!gradient) row[kGradientSquare] = row[kWeightGradient] = row[kGradientUpdate] = missing;
  if (!previous) {
    row[kUpdateSquare] = row[kWeightUpdate] = row[kGradientUpdate] = missing;
  }
}

/// In float64; a complex tensor as its real and imaginary parts, so that products of two are the
/// real parts of Hermitian ones.
at::Tensor widened(const at::Tensor& tensor) {
  if (!tensor.is_complex()) return tensor.to(at::kDouble);
  return at::view_as_real(tensor.resolve_conj()).to(at::kDouble);
}

/// Any device, dtype and layout. Of a gradient that is sparse over its first dimension only the
/// rows that it has are multiplied.
at::Tensor sum_row(const SumsInput& input, bool refresh) {
  const at::Tensor after = widened(input.weight.detach());
  const at::Tensor weight = input.previous.defined() ? widened(input.previous) : after;
  const at::Tensor missing =
      at::full({}, std::numeric_limits<double>::quiet_NaN(), after.options());
  at::Tensor gradient, update;
  if (input.previous.defined()) update = after - weight;
  at::Tensor rows;  // of the gradient, where it is sparse
  if (input.gradient.defined()) {
    gradient = input.gradient;
    if (gradient.is_sparse() && gradient.sparse_dim() == 1) {
      gradient = gradient.coalesce();
      rows = gradient.indices().select(0, 0);
      gradient = gradient.values();
    } else if (gradient.layout() != at::kStrided) {
      gradient = gradient.to_dense();
    }
    gradient = widened(gradient).to(after.device());
  }
  const auto sum = [&](const at::Tensor& left, const at::Tensor& right) {
    return left.defined() && right.defined() ? (left * right).sum() : missing;
  };
  const auto with_gradient = [&](const at::Tensor& other) {
    return sum(other.defined() && rows.defined() ? other.index_select(0, rows) : other, gradient);
  };
  const at::Tensor row =
      at::stack({sum(weight, weight), sum(gradient, gradient), sum(update, update),
                 with_gradient(weight), sum(weight, update), with_gradient(update)});
  if (refresh && input.previous.defined()) input.previous.copy_(input.weight.detach());
  return row;
}

}  // namespace

ParameterSums parameter_sums(const std::vector<SumsInput>& inputs, bool refresh) {
  if (inputs.empty()) return {at::empty({0, kParameterSums}, at::kDouble), {}};
  // The same blocks whatever the number of threads, and one parallel region for all of them.
  struct Block {
    size_t input;
    int64_t begin;
    Sums sums;
  };
  std::vector<Block> blocks;
  blocks.reserve(inputs.size());
  std::vector<at::Tensor> slow(inputs.size());
  size_t slow_rows = 0;
  bool one_device = true;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (fits_fast_path(inputs[i])) {
      for (int64_t begin = 0; begin < inputs[i].weight.numel(); begin += kBlock) {
        blocks.push_back({i, begin, {}});
      }
    } else {
      slow[i] = sum_row(inputs[i], refresh);
      ++slow_rows;
    }
    one_device = one_device && inputs[i].weight.device() == inputs[0].weight.device();
  }
  if (slow_rows == inputs.size() && one_device) return {at::stack(slow), {}};

  at::parallel_for(0, static_cast<int64_t>(blocks.size()), 2, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Block& block = blocks[static_cast<size_t>(b)];
      block.sums = sum_block_of(inputs[block.input], block.begin, refresh);
    }
  });
  at::Tensor result = at::zeros({static_cast<int64_t>(inputs.size()), kParameterSums}, at::kDouble);
  const auto row = [&](size_t input) { return result.data_ptr<double>() + input * kParameterSums; };
  std::vector<double> gradient(inputs.size(), 0.0);
  for (const Block& block : blocks) {
    for (int s = 0; s < kParameterSums; ++s) row(block.input)[s] += block.sums.value[s];
    gradient[block.input] += block.sums.gradient;
  }
  std::vector<size_t> changed;
  for (size_t i = 0; i < inputs.size(); ++i) {
    bool as_delivered = inputs[i].gradient.defined();
    if (slow[i].defined()) {
      result[static_cast<int64_t>(i)].copy_(slow[i]);
    } else if (as_delivered && inputs[i].fingerprint.defined()) {
      const double* delivered = inputs[i].fingerprint.data_ptr<double>();
      as_delivered =
          same_bits(gradient[i], delivered[0]) && same_bits(row(i)[kGradientSquare], delivered[1]);
    }
    if (inputs[i].fingerprint.defined() && (slow[i].defined() || !as_delivered)) {
      as_delivered = false;
      changed.push_back(i);
    }
    forget_missing(as_delivered, inputs[i].previous.defined(), row(i));
  }
  return {result, std::move(changed)};
}

}  // namespace tycho
