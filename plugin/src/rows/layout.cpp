#include "rows/layout.h"

#include <ATen/ATen.h>

#include <numeric>

namespace tycho::rows {
namespace {

int64_t product(at::IntArrayRef sizes, size_t begin, size_t end) {
  int64_t result = 1;
  for (size_t i = begin; i < end; ++i) result *= sizes[i];
  return result;
}

at::Tensor regular(int64_t examples, int64_t outer, int64_t inner) {
  return at::arange(examples, at::kLong)
      .reshape({1, examples, 1})
      .expand({outer, examples, inner})
      .reshape({-1});
}

}  // namespace

Layout none(int64_t examples) {
  Layout result;
  result.examples = examples;
  return result;
}

Layout whole(int64_t dim, int64_t examples) {
  Layout result;
  result.kind = Layout::Kind::kRows;
  result.examples = examples;
  result.dim = dim;
  return result;
}

Layout labelled(int64_t dim, int64_t examples, at::Tensor labels) {
  Layout result = whole(dim, examples);
  labels = labels.contiguous();
  const int64_t size = labels.numel();
  if (size > 0 && size % examples == 0) {
    const int64_t* label = labels.data_ptr<int64_t>();
    int64_t inner = 0;
    while (inner < size && label[inner] == 0) ++inner;
    if (inner > 0 && (examples == 1 || size % (examples * inner) == 0)) {
      const int64_t run = examples == 1 ? size : inner;
      const int64_t outer = size / (examples * run);
      if (at::equal(labels, regular(examples, outer, run))) {
        result.outer = outer;
        result.inner = run;
        return result;
      }
    }
  }
  result.labels = std::move(labels);
  return result;
}

Layout sum(int64_t examples) {
  Layout result;
  result.kind = Layout::Kind::kSum;
  result.examples = examples;
  return result;
}

Layout lost(int64_t examples, std::string why) {
  Layout result;
  result.kind = Layout::Kind::kLost;
  result.examples = examples;
  result.why = std::move(why);
  return result;
}

at::Tensor labels(const Layout& layout) {
  return layout.labels.defined() ? layout.labels
                                 : regular(layout.examples, layout.outer, layout.inner);
}

bool same(const Layout& left, const Layout& right) {
  if (left.kind != right.kind || left.examples != right.examples) return false;
  if (!left.has_rows()) return true;
  if (left.dim != right.dim || left.labels.defined() != right.labels.defined()) return false;
  if (left.labels.defined()) return at::equal(left.labels, right.labels);
  return left.outer == right.outer && left.inner == right.inner;
}

bool sequences_keep_order(const at::Tensor& labels, const at::Tensor& counts) {
  const at::Tensor order = labels.slice(0, 0, counts[0].item<int64_t>());
  int64_t start = 0;
  for (int64_t t = 0; t < counts.numel(); ++t) {
    const int64_t count = counts[t].item<int64_t>();
    if (!at::equal(labels.slice(0, start, start + count), order.slice(0, 0, count))) return false;
    start += count;
  }
  return true;
}

bool complete(const Layout& layout) {
  if (!layout.has_rows()) return false;
  if (!layout.labels.defined()) return true;
  const at::Tensor known = layout.labels.masked_select(layout.labels.ge(0));
  return known.numel() > 0 && at::bincount(known, {}, layout.examples).gt(0).all().item<bool>();
}

Layout in_dim(Layout layout, int64_t dim) {
  layout.dim = dim;
  return layout;
}

Layout reshaped(const Layout& layout, at::IntArrayRef from, at::IntArrayRef to) {
  if (!layout.has_rows()) return layout;
  const auto dim = static_cast<size_t>(layout.dim);
  const int64_t before = product(from, 0, dim);
  const int64_t after = product(from, dim + 1, from.size());
  const int64_t size = from[dim];
  if (size == 0 || before == 0 || after == 0) return lost(layout.examples, "a tensor is empty");
  // The dimension that takes all of it, and perhaps some of its neighbours.
  for (size_t j = 0; j < to.size(); ++j) {
    const int64_t front = product(to, 0, j);
    const int64_t back = product(to, j + 1, to.size());
    if (layout.labels.defined()) {
      if (before % front != 0 || after % back != 0) continue;
      const int64_t outer = before / front;
      const int64_t inner = after / back;
      if (outer * size * inner != to[j]) continue;
      return labelled(
          static_cast<int64_t>(j), layout.examples,
          layout.labels.reshape({1, size, 1}).expand({outer, size, inner}).reshape({-1}));
    }
    const int64_t all_before = before * layout.outer;
    const int64_t all_after = after * layout.inner;
    if (all_before % front != 0 || all_after % back != 0) continue;
    const int64_t outer = all_before / front;
    const int64_t inner = all_after / back;
    if (outer * layout.examples * inner != to[j]) continue;
    Layout result = whole(static_cast<int64_t>(j), layout.examples);
    result.outer = outer;
    result.inner = inner;
    return result;
  }
  // Labels that repeat may be those of one of several dimensions.
  size_t first = 0;
  while (first < to.size() && product(to, 0, first + 1) <= before) ++first;
  size_t last = first;
  while (last < to.size() && product(to, first, last) < size) ++last;
  if (product(to, 0, first) == before && product(to, first, last) == size) {
    const at::Tensor shaped = labels(layout).reshape(to.slice(first, last - first));
    for (int64_t j = 0; j < shaped.dim(); ++j) {
      const at::Tensor by = shaped.movedim(j, 0).reshape({shaped.size(j), -1});
      if (by.eq(by.select(1, 0).unsqueeze(1)).all().item<bool>()) {
        return labelled(static_cast<int64_t>(first) + j, layout.examples, by.select(1, 0).clone());
      }
    }
  }
  return lost(layout.examples, "a dimension in which examples lie is cut up");
}

Layout broadcast(const Layout& layout, at::IntArrayRef from, at::IntArrayRef to) {
  if (!layout.has_rows()) return layout;
  if (to.size() < from.size()) return lost(layout.examples, "it has fewer dimensions afterwards");
  Layout result = layout;
  result.dim += static_cast<int64_t>(to.size() - from.size());
  const int64_t size = from[static_cast<size_t>(layout.dim)];
  const int64_t wanted = to[static_cast<size_t>(result.dim)];
  if (size == wanted) return result;
  if (size != 1) return lost(layout.examples, "the dimension of the examples changes its size");
  return labelled(result.dim, layout.examples, labels(layout).expand({wanted}));
}

Layout taken(const Layout& layout, const at::Tensor& index) {
  if (!layout.has_rows()) return layout;
  const at::Tensor all = labels(layout);
  at::Tensor where = index.to(at::kCPU, at::kLong).reshape({-1});
  where = at::where(where.lt(0), where + all.numel(), where);
  return labelled(layout.dim, layout.examples, all.index_select(0, where));
}

}  // namespace tycho::rows
