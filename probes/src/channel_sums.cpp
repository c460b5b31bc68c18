#include "channel_sums.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "vector_lanes.h"

namespace tycho {
namespace {

using lanes::Doubles;
using lanes::Floats;
using lanes::kLanes;

constexpr int64_t kGrain = 1 << 15;  // elements that are worth a thread
constexpr int64_t kColumns = 64;     // channels that are summed side by side

struct Sums {
  double ww = 0;
  double wg = 0;
  double gg = 0;
};

#define TYCHO_STRETCH(name, type, lanes_type)                                       \
  TYCHO_CLONES void name(const type* w, const type* g, int64_t count, Sums* sums) { \
    Doubles ww{}, wg{}, gg{};                                                       \
    int64_t i = 0;                                                                  \
    for (; i + kLanes <= count; i += kLanes) {                                      \
      lanes_type a, b;                                                              \
      std::memcpy(&a, w + i, sizeof(a));                                            \
      std::memcpy(&b, g + i, sizeof(b));                                            \
      const Doubles x = __builtin_convertvector(a, Doubles);                        \
      const Doubles y = __builtin_convertvector(b, Doubles);                        \
      ww += x * x;                                                                  \
      wg += x * y;                                                                  \
      gg += y * y;                                                                  \
    }                                                                               \
    sums->ww += lanes::total(ww);                                                   \
    sums->wg += lanes::total(wg);                                                   \
    sums->gg += lanes::total(gg);                                                   \
    for (; i < count; ++i) {                                                        \
      const double x = w[i];                                                        \
      const double y = g[i];                                                        \
      sums->ww += x * x;                                                            \
      sums->wg += x * y;                                                            \
      sums->gg += y * y;                                                            \
    }                                                                               \
  }
TYCHO_STRETCH(stretch_float, float, Floats)
TYCHO_STRETCH(stretch_double, double, Doubles)
#undef TYCHO_STRETCH

// Of `count` neighbouring channels, at most kColumns, in `rows` rows that are `stride` apart.
#define TYCHO_COLUMNS(name, type)                                                    \
  TYCHO_CLONES void name(const type* w, const type* g, int64_t rows, int64_t stride, \
                         int64_t count, double* ww, double* wg, double* gg) {        \
    std::array<double, kColumns> a{}, b{}, c{};                                      \
    for (int64_t row = 0; row < rows; ++row) {                                       \
      for (int64_t i = 0; i < count; ++i) {                                          \
        const double x = w[row * stride + i];                                        \
        const double y = g[row * stride + i];                                        \
        a[static_cast<size_t>(i)] += x * x;                                          \
        b[static_cast<size_t>(i)] += x * y;                                          \
        c[static_cast<size_t>(i)] += y * y;                                          \
      }                                                                              \
    }                                                                                \
    std::copy_n(a.begin(), count, ww);                                               \
    std::copy_n(b.begin(), count, wg);                                               \
    std::copy_n(c.begin(), count, gg);                                               \
  }
TYCHO_COLUMNS(columns_float, float)
TYCHO_COLUMNS(columns_double, double)
#undef TYCHO_COLUMNS

void stretch(const float* w, const float* g, int64_t count, Sums* sums) {
  stretch_float(w, g, count, sums);
}
void stretch(const double* w, const double* g, int64_t count, Sums* sums) {
  stretch_double(w, g, count, sums);
}
void columns(const float* w, const float* g, int64_t rows, int64_t stride, int64_t count,
             double* ww, double* wg, double* gg) {
  columns_float(w, g, rows, stride, count, ww, wg, gg);
}
void columns(const double* w, const double* g, int64_t rows, int64_t stride, int64_t count,
             double* ww, double* wg, double* gg) {
  columns_double(w, g, rows, stride, count, ww, wg, gg);
}

// Elements as [outer, channels, inner].
struct Layout {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;
};

std::optional<Layout> layout_of(const SymmetryMember& member) {
  Layout layout;
  int64_t last = -1;
  for (const int64_t axis : member.axes) {
    const int64_t size = member.view[static_cast<size_t>(axis)];
    layout.channels *= size;
    if (size == 1) continue;
    for (int64_t between = last + 1; last >= 0 && between < axis; ++between) {
      if (member.view[static_cast<size_t>(between)] != 1) return std::nullopt;
    }
    if (axis < last) return std::nullopt;
    last = axis;
  }
  bool passed = false;
  for (size_t axis = 0; axis < member.view.size(); ++axis) {
    const bool of_channel = std::find(member.axes.begin(), member.axes.end(),
                                      static_cast<int64_t>(axis)) != member.axes.end();
    if (of_channel) {
      passed = passed || member.view[axis] != 1;
    } else {
      (passed ? layout.inner : layout.outer) *= member.view[axis];
    }
  }
  return layout;
}

template <typename T>
void sum(const T* w, const T* g, const Layout& layout, const ChannelSums& result) {
  double* ww = result.ww.data_ptr<double>();
  double* wg = result.wg.data_ptr<double>();
  double* gg = result.gg.data_ptr<double>();
  const int64_t per_channel = std::max<int64_t>(layout.outer * layout.inner, 1);
  if (layout.inner == 1 && layout.outer > 1) {
    const int64_t blocks = (layout.channels + kColumns - 1) / kColumns;
    const int64_t grain = std::max<int64_t>(1, kGrain / (per_channel * kColumns));
    at::parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kColumns;
        columns(w + begin, g + begin, layout.outer, layout.channels,
                std::min(kColumns, layout.channels - begin), ww + begin, wg + begin, gg + begin);
      }
    });
    return;
  }
  at::parallel_for(0, layout.channels, std::max<int64_t>(1, kGrain / per_channel),
                   [&](int64_t first, int64_t last) {
                     for (int64_t channel = first; channel < last; ++channel) {
                       Sums sums;
                       for (int64_t outer = 0; outer < layout.outer; ++outer) {
                         const int64_t begin = (outer * layout.channels + channel) * layout.inner;
                         stretch(w + begin, g + begin, layout.inner, &sums);
                       }
                       ww[channel] = sums.ww;
                       wg[channel] = sums.wg;
                       gg[channel] = sums.gg;
                     }
                   });
}

}  // namespace

std::optional<ChannelSums> channel_sums(const at::Tensor& w, const at::Tensor& g,
                                        const SymmetryMember& member) {
  const auto fast = [](const at::Tensor& tensor) {
    return tensor.device().is_cpu() && tensor.layout() == at::kStrided && tensor.is_contiguous() &&
           (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble);
  };
  if (!fast(w) || !fast(g) || w.scalar_type() != g.scalar_type() || w.numel() != g.numel())
    return std::nullopt;
  const auto layout = layout_of(member);
  if (!layout) return std::nullopt;
  int64_t offset = 0;
  const int64_t elements = layout->outer * layout->channels * layout->inner;
  if (w.dim() > 0 && w.size(0) > 0) offset = member.begin * (w.numel() / w.size(0));
  if (elements == 0 || offset + elements > w.numel()) return std::nullopt;
  ChannelSums result;
  const at::Tensor all = at::zeros({3, layout->channels}, at::kDouble);
  result.ww = all.select(0, 0);
  result.wg = all.select(0, 1);
  result.gg = all.select(0, 2);
  if (w.scalar_type() == at::kFloat) {
    sum(w.data_ptr<float>() + offset, g.data_ptr<float>() + offset, *layout, result);
  } else {
    sum(w.data_ptr<double>() + offset, g.data_ptr<double>() + offset, *layout, result);
  }
  return result;
}

}  // namespace tycho
