#include "structure/channel_shape.h"

#include <algorithm>

namespace tycho::structure {

ChannelShape::ChannelShape(c10::IntArrayRef sizes) {
  for (const int64_t size : sizes) dims_.push_back({{size, -1}});
  normalize();
}

ChannelShape::ChannelShape(c10::IntArrayRef sizes, c10::IntArrayRef channel) : ChannelShape(sizes) {
  int number = 0;
  for (const int64_t dim : channel) {
    dims_[static_cast<size_t>(dim)] = {{sizes[static_cast<size_t>(dim)], number++}};
  }
  normalize();
}

std::vector<int64_t> ChannelShape::sizes() const {
  std::vector<int64_t> result;
  for (size_t i = 0; i < dims_.size(); ++i) result.push_back(size(i));
  return result;
}

int64_t ChannelShape::size(size_t dim) const {
  int64_t product = 1;
  for (const Factor& factor : dims_[dim]) product *= factor.size;
  return product;
}

int64_t ChannelShape::channels() const {
  int64_t product = 1;
  for (const auto& dim : dims_) {
    for (const Factor& factor : dim) product *= factor.channel >= 0 ? factor.size : 1;
  }
  return product;
}

bool ChannelShape::touches(size_t dim) const {
  return std::any_of(dims_[dim].begin(), dims_[dim].end(),
                     [](const Factor& factor) { return factor.channel >= 0; });
}

bool ChannelShape::only_in(size_t dim) const {
  for (size_t i = 0; i < dims_.size(); ++i) {
    if (i != dim && touches(i)) return false;
  }
  return touches(dim);
}

bool ChannelShape::exactly_is(size_t dim) const {
  return only_in(dim) && std::all_of(dims_[dim].begin(), dims_[dim].end(),
                                     [](const Factor& factor) { return factor.channel >= 0; });
}

ChannelShape::Layout ChannelShape::layout(size_t dim) const {
  Layout result;
  for (const Factor& factor : dims_[dim]) {
    if (factor.channel < 0) continue;
    int64_t stride = 1;
    for (const auto& other : dims_) {
      for (const Factor& f : other) stride *= f.channel > factor.channel ? f.size : 1;
    }
    result.emplace_back(factor.size, stride);
  }
  return result;
}

std::optional<ChannelShape> ChannelShape::regrouped(c10::IntArrayRef sizes) const {
  std::vector<Factor> left;
  for (const auto& dim : dims_) left.insert(left.end(), dim.begin(), dim.end());
  ChannelShape result;
  size_t next = 0;
  for (const int64_t size : sizes) {
    result.dims_.emplace_back();
    int64_t wanted = size;
    if (wanted <= 0) return std::nullopt;
    while (wanted > 1) {
      if (next == left.size()) return std::nullopt;
      Factor& factor = left[next];
      if (wanted % factor.size == 0) {
        wanted /= factor.size;
        result.dims_.back().push_back(factor);
        ++next;
        continue;
      }
      if (factor.size % wanted != 0) return std::nullopt;
      // Split: the more significant part goes here, the rest comes next.
      const Factor rest{factor.size / wanted, factor.channel < 0 ? -1 : factor.channel + 1};
      if (factor.channel >= 0) {
        const int at = factor.channel;
        for (auto& dim : result.dims_) {
          for (Factor& f : dim) f.channel += f.channel > at ? 1 : 0;
        }
        for (size_t i = next + 1; i < left.size(); ++i) {
          left[i].channel += left[i].channel > at ? 1 : 0;
        }
      }
      result.dims_.back().push_back({wanted, factor.channel});
      factor = rest;
      wanted = 1;
    }
  }
  if (next != left.size()) return std::nullopt;
  result.normalize();
  return result;
}

ChannelShape ChannelShape::permuted(c10::IntArrayRef order) const {
  ChannelShape result;
  for (const int64_t dim : order) result.dims_.push_back(dims_[static_cast<size_t>(dim)]);
  result.normalize();
  return result;
}

std::optional<ChannelShape> ChannelShape::resized(c10::IntArrayRef sizes) const {
  if (sizes.size() != dims_.size()) return std::nullopt;
  ChannelShape result = *this;
  for (size_t i = 0; i < dims_.size(); ++i) {
    if (size(i) == sizes[i]) continue;
    if (touches(i)) return std::nullopt;
    result.dims_[i] = {{sizes[i], -1}};
  }
  result.normalize();
  return result;
}

ChannelShape ChannelShape::with_plain(size_t dim, int64_t size) const {
  ChannelShape result = *this;
  result.dims_[dim] = {{size, -1}};
  result.normalize();
  return result;
}

std::optional<ChannelShape> ChannelShape::with_leading(size_t dim, int64_t part, bool drop) const {
  if (dims_[dim].size() != 1 || dims_[dim][0].channel != 0) return std::nullopt;
  ChannelShape result = *this;
  result.dims_[dim][0].size = part;
  if (drop) result.dims_.erase(result.dims_.begin() + static_cast<std::ptrdiff_t>(dim));
  result.normalize();
  return result;
}

ChannelShape ChannelShape::without_dim(size_t dim) const {
  ChannelShape result = *this;
  result.dims_.erase(result.dims_.begin() + static_cast<std::ptrdiff_t>(dim));
  result.normalize();
  return result;
}

ChannelShape ChannelShape::padded(size_t dims) const {
  ChannelShape result = *this;
  if (dims > dims_.size()) result.dims_.insert(result.dims_.begin(), dims - dims_.size(), {});
  return result;
}

// Leaves out factors of one, joins neighbours that belong together, numbers without gaps.
void ChannelShape::normalize() {
  std::vector<int> used;
  for (auto& dim : dims_) {
    dim.erase(std::remove_if(dim.begin(), dim.end(),
                             [](const Factor& factor) { return factor.size == 1; }),
              dim.end());
    for (const Factor& factor : dim) {
      if (factor.channel >= 0) used.push_back(factor.channel);
    }
  }
  std::sort(used.begin(), used.end());
  for (auto& dim : dims_) {
    for (Factor& factor : dim) {
      if (factor.channel < 0) continue;
      factor.channel = static_cast<int>(std::lower_bound(used.begin(), used.end(), factor.channel) -
                                        used.begin());
    }
  }
  for (auto& dim : dims_) {
    for (size_t i = 0; i + 1 < dim.size();) {
      const bool both_plain = dim[i].channel < 0 && dim[i + 1].channel < 0;
      const bool follows = dim[i].channel >= 0 && dim[i + 1].channel == dim[i].channel + 1;
      if (!both_plain && !follows) {
        ++i;
        continue;
      }
      const int gone = dim[i + 1].channel;
      dim[i].size *= dim[i + 1].size;
      dim.erase(dim.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      if (!follows) continue;
      for (auto& other : dims_) {
        for (Factor& factor : other) factor.channel -= factor.channel > gone ? 1 : 0;
      }
    }
  }
}

}  // namespace tycho::structure
