#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

// Where the examples of a batch lie in a tensor, and what moving its elements makes of that.
namespace tycho::rows {

/// Labels of rows that are not one example's.
constexpr int64_t kNoExample = -1;
constexpr int64_t kSeveralExamples = -2;

/// Which example each index of one dimension belongs to.
struct Layout {
  enum class Kind {
    kNone,  ///< nothing of the examples is in it: parameters, constants
    kRows,  ///< each index of `dim` belongs to one example
    kSum,   ///< a sum over the examples of numbers that each depend on one of them
    kLost,  ///< `why` it cannot be told
  };
  Kind kind = Kind::kNone;
  int64_t examples = 0;  ///< of the batch; 0 with kLost: of whatever batch
  int64_t dim = 0;
  /// Without labels: index = (o * examples + example) * inner + i, with o < outer and i < inner.
  int64_t outer = 1;
  int64_t inner = 1;
  at::Tensor labels;  ///< int64 on the CPU: example of each index, or one of the constants above
  std::string why;

  bool none() const { return kind == Kind::kNone; }
  bool has_rows() const { return kind == Kind::kRows; }
  bool lost() const { return kind == Kind::kLost; }
};

Layout none(int64_t examples);
/// Each index of `dim` is one example, in order.
Layout whole(int64_t dim, int64_t examples);
/// `labels` [size of dim] say it; simplified where they follow the regular pattern.
Layout labelled(int64_t dim, int64_t examples, at::Tensor labels);
Layout sum(int64_t examples);
Layout lost(int64_t examples, std::string why);

/// The example of each index of the dimension: int64 on the CPU.
at::Tensor labels(const Layout& layout);
/// Whether the same indices of the same dimension belong to the same examples.
bool same(const Layout& left, const Layout& right);
/// Whether the rows of each time of packed sequences (`counts`: how many, int64 on the CPU) are the
/// first ones of the same order.
bool sequences_keep_order(const at::Tensor& labels, const at::Tensor& counts);
/// Whether every example is there.
bool complete(const Layout& layout);

// The following take layouts with rows; others come back as they are.

Layout in_dim(Layout layout, int64_t dim);
/// Elements in the same order in another shape.
Layout reshaped(const Layout& layout, at::IntArrayRef from, at::IntArrayRef to);
/// As broadcasting does: dimensions are added at the front, and those of size one grow.
Layout broadcast(const Layout& layout, at::IntArrayRef from, at::IntArrayRef to);
/// The indices `index` (int64, one dimension) of the dimension.
Layout taken(const Layout& layout, const at::Tensor& index);

}  // namespace tycho::rows
