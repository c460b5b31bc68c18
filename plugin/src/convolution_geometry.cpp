#include "convolution_geometry.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

namespace tycho {
namespace {

/// One entry for each dimension, of an argument that has one for all or one for each.
bool read_list(const c10::IValue& value, size_t dims, std::vector<int64_t>* list) {
  if (value.isInt()) {
    *list = {value.toInt()};
  } else if (value.isIntList()) {
    *list = value.toIntVector();
  } else {
    return false;
  }
  if (list->size() == 1) list->resize(dims, (*list)[0]);
  return list->size() == dims;
}

/// Positions of the arguments behind the bias.
struct Layout {
  size_t stride = 3;
  size_t padding = 4;
  size_t dilation = 5;
  size_t groups = 6;
  size_t output_padding = 0;  ///< 0: none
  size_t transposed = 0;      ///< 0: the name says it
  bool name_is_transposed = false;
};

std::optional<Layout> layout_of(std::string_view name) {
  Layout layout;
  if (name == "aten::conv1d" || name == "aten::conv2d" || name == "aten::conv3d") return layout;
  if (name == "aten::conv_transpose1d" || name == "aten::conv_transpose2d" ||
      name == "aten::conv_transpose3d") {
    layout.output_padding = 5;
    layout.dilation = 7;
    layout.name_is_transposed = true;
    return layout;
  }
  if (name == "aten::convolution" || name == "aten::_convolution") {
    layout.transposed = 6;
    layout.output_padding = 7;
    layout.groups = 8;
    return layout;
  }
  return std::nullopt;
}

}  // namespace

std::optional<ConvolutionGeometry> convolution_geometry(std::string_view name,
                                                        c10::ArrayRef<const c10::IValue> inputs) {
  const auto layout = layout_of(name);
  if (!layout || inputs.size() <= std::max(layout->groups, layout->dilation)) return std::nullopt;
  if (!inputs[0].isTensor() || !inputs[1].isTensor()) return std::nullopt;
  const at::Tensor input = inputs[0].toTensor();
  const at::Tensor kernel = inputs[1].toTensor();
  if (!input.defined() || !kernel.defined() || kernel.dim() < 3) return std::nullopt;
  const auto dims = static_cast<size_t>(kernel.dim() - 2);
  if (input.dim() < kernel.dim() - 1) return std::nullopt;
  ConvolutionGeometry geometry;
  geometry.transposed = layout->name_is_transposed;
  if (layout->transposed > 0) {
    if (!inputs[layout->transposed].isBool()) return std::nullopt;
    geometry.transposed = inputs[layout->transposed].toBool();
  }
  geometry.more_at_end.assign(dims, 0);
  geometry.output_padding.assign(dims, 0);
  if (!read_list(inputs[layout->stride], dims, &geometry.stride) ||
      !read_list(inputs[layout->dilation], dims, &geometry.dilation) ||
      !inputs[layout->groups].isInt()) {
    return std::nullopt;
  }
  geometry.groups = inputs[layout->groups].toInt();
  if (layout->output_padding > 0 &&
      !read_list(inputs[layout->output_padding], dims, &geometry.output_padding)) {
    return std::nullopt;
  }
  const c10::IValue& padding = inputs[layout->padding];
  if (padding.isString()) {
    geometry.padding.assign(dims, 0);
    if (padding.toStringRef() == "same") {
      for (size_t i = 0; i < dims; ++i) {
        const int64_t total = geometry.dilation[i] * (kernel.size(static_cast<int64_t>(i) + 2) - 1);
        geometry.padding[i] = total / 2;
        geometry.more_at_end[i] = total - 2 * geometry.padding[i];
      }
    } else if (padding.toStringRef() != "valid") {
      return std::nullopt;
    }
  } else if (!read_list(padding, dims, &geometry.padding)) {
    return std::nullopt;
  }
  const auto sizes = input.sizes();
  geometry.input.assign(sizes.end() - static_cast<std::ptrdiff_t>(dims), sizes.end());
  return geometry;
}

}  // namespace tycho
