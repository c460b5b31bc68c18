#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace tycho::structure {

/// Shape of an activation in which some factors of its dimensions make up the index of a channel:
/// after view({batch, time, heads, width}) the channels of a linear layer are two dimensions, after
/// flatten() behind a convolution they are a part of one. The factors of the channel are numbered,
/// the most significant first.
class ChannelShape {
 public:
  struct Factor {
    int64_t size = 1;
    int channel = -1;  ///< number among the factors of the channel; -1: none of them
  };
  /// Of one dimension; nearly always one or two.
  using Factors = c10::SmallVector<Factor, 2>;
  /// Size and stride, in channels, of a factor of the channel.
  using Layout = std::vector<std::pair<int64_t, int64_t>>;

  ChannelShape() = default;
  explicit ChannelShape(c10::IntArrayRef sizes);
  /// `channel`: dimensions that together are the channel, ascending.
  ChannelShape(c10::IntArrayRef sizes, c10::IntArrayRef channel);

  size_t dims() const { return dims_.size(); }
  const Factors& factors(size_t dim) const { return dims_[dim]; }
  std::vector<int64_t> sizes() const;
  int64_t size(size_t dim) const;
  int64_t channels() const;
  bool touches(size_t dim) const;     ///< a factor of the channel lies in `dim`
  bool only_in(size_t dim) const;     ///< all factors of the channel lie in `dim`
  bool exactly_is(size_t dim) const;  ///< and nothing else does
  Layout layout(size_t dim) const;

  /// The same elements in the same order as another shape; none where a factor would be torn.
  std::optional<ChannelShape> regrouped(c10::IntArrayRef sizes) const;
  ChannelShape permuted(c10::IntArrayRef order) const;
  /// Other sizes of dimensions without channel; none where one with a channel would change.
  std::optional<ChannelShape> resized(c10::IntArrayRef sizes) const;
  /// One dimension replaced by one without channel, of any size.
  ChannelShape with_plain(size_t dim, int64_t size) const;
  /// Only `part` of the values of the most significant factor of the channel, which is all of
  /// `dim`; drops `dim` where `drop`. None where that factor lies elsewhere.
  std::optional<ChannelShape> with_leading(size_t dim, int64_t part, bool drop) const;
  ChannelShape without_dim(size_t dim) const;
  /// With leading dimensions of one, as broadcasting adds them.
  ChannelShape padded(size_t dims) const;

 private:
  void normalize();
  std::vector<Factors> dims_;
};

}  // namespace tycho::structure
