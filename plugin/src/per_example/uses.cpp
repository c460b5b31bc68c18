#include "per_example/uses.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tycho::per_example {
namespace {

struct Group {
  const Part* first = nullptr;
  at::Tensor norm_sq;
  at::Tensor projected;
  at::Tensor per_example;  // [b, elements]; only where it was needed
};

/// The elements of a gradient that belong to a view of the parameter.
at::Tensor viewed(const at::Tensor& gradient, const at::Tensor& parameter, const View& view) {
  at::Tensor like = gradient;
  if (gradient.strides() != parameter.strides()) {
    like = at::empty_strided(parameter.sizes(), parameter.strides(), gradient.options());
    like.copy_(gradient);
  }
  return like.as_strided(view.sizes, view.strides,
                         like.storage_offset() + view.offset - parameter.storage_offset());
}

std::string too_large(int64_t examples, int64_t elements) {
  return fmt::format("it is used several times, and the gradients of {} examples would need {} MiB",
                     examples, examples * elements * 8 >> 20);
}

/// The uses of one view. `materialise`: their per-example gradients too.
Group join_view(const std::vector<const Part*>& uses, int64_t examples, bool materialise,
                std::string* why_not) {
  Group group;
  group.first = uses[0];
  std::vector<at::Tensor> rows, columns;
  for (const Part* part : uses) {
    const Contribution& found = part->contribution;
    group.projected =
        group.projected.defined() ? group.projected + found.projected : found.projected;
    if (!found.row_factor.defined()) continue;
    rows.push_back(found.row_factor);
    columns.push_back(found.column_factor);
  }
  if (uses.size() == 1 && !materialise) {
    group.norm_sq = uses[0]->contribution.norm_sq;
    return group;
  }
  const bool factors = rows.size() == uses.size();
  if (factors && !materialise) {
    group.norm_sq = outer_products(at::cat(rows, 1), at::cat(columns, 1), {}).norm_sq;
    return group;
  }
  const int64_t elements = uses[0]->view.elements;
  if (examples * elements > kMaxMaterialisedElements) {
    *why_not = too_large(examples, elements);
    return group;
  }
  for (const Part* part : uses) {
    const Contribution& found = part->contribution;
    at::Tensor gradients = found.per_example;
    if (!gradients.defined() && found.row_factor.defined()) {
      gradients = at::bmm(found.row_factor.transpose(1, 2), found.column_factor);
    }
    if (!gradients.defined()) {
      *why_not = too_large(examples, elements);
      return group;
    }
    gradients = gradients.reshape({examples, -1});
    group.per_example = group.per_example.defined() ? group.per_example + gradients : gradients;
  }
  group.norm_sq = row_norm_sq(group.per_example);
  return group;
}

}  // namespace

View::View(const at::Tensor& tensor)
    : sizes(tensor.sizes().vec()),
      strides(tensor.strides().vec()),
      offset(tensor.storage_offset()),
      elements(tensor.numel()) {}

Joined join(std::vector<Part> parts, const at::Tensor& parameter, const at::Tensor& delivered) {
  Joined result;
  const int64_t examples = parts[0].contribution.norm_sq.size(0);
  const auto type = delivered.scalar_type();
  bool low_precision = type == at::kHalf || type == at::kBFloat16;
  std::vector<std::vector<const Part*>> by_view;
  for (const Part& part : parts) {
    if (part.contribution.norm_sq.size(0) != examples) {
      result.why_not = "its uses saw batches of different sizes";
      return result;
    }
    low_precision = low_precision || part.low_precision;
    const auto same = std::find_if(by_view.begin(), by_view.end(),
                                   [&](const auto& group) { return group[0]->view == part.view; });
    if (same == by_view.end()) {
      by_view.push_back({&part});
    } else {
      same->push_back(&part);
    }
  }
  result.tolerance = low_precision ? 5e-2 : type == at::kDouble ? 1e-9 : 2e-4;
  bool disjoint = true;
  for (size_t i = 0; i < by_view.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      disjoint = disjoint && !by_view[i][0]->view.overlaps(by_view[j][0]->view);
    }
  }
  std::vector<Group> groups;
  for (const auto& uses : by_view) {
    groups.push_back(join_view(uses, examples, !disjoint, &result.why_not));
    if (!result.why_not.empty()) return result;
  }
  const at::Tensor gradient = widen(delivered);
  const auto differ = [&](const at::Tensor& error, const at::Tensor& scale) {
    const at::Tensor relative = error / scale;
    result.difference =
        result.difference.defined() ? at::fmax(result.difference, relative) : relative;
  };
  if (!disjoint) {
    if (examples * gradient.numel() > kMaxMaterialisedElements) {
      result.why_not = too_large(examples, gradient.numel());
      return result;
    }
    at::Tensor sum = at::zeros({examples, gradient.numel()}, groups[0].per_example.options());
    for (const Group& group : groups) {
      const View& view = group.first->view;
      std::vector<int64_t> sizes = view.sizes, strides = view.strides;
      sizes.insert(sizes.begin(), examples);
      strides.insert(strides.begin(), gradient.numel());
      sum.as_strided(sizes, strides, view.offset - parameter.storage_offset())
          .add_(group.per_example.reshape(sizes));
    }
    result.norm_sq = row_norm_sq(sum);
    View flat(parameter);
    flat.sizes = {gradient.numel()};
    flat.strides = {1};
    const at::Tensor expected = viewed(gradient, parameter, flat).to(at::kDouble);
    differ((sum.sum(0, false, at::kDouble) - expected).norm(),
           result.norm_sq.sqrt().sum() + expected.norm());
    return result;
  }
  int64_t covered = 0;
  at::Tensor covered_sq;
  for (const Group& group : groups) {
    const View& view = group.first->view;
    const at::Tensor part = viewed(gradient, parameter, view);
    const at::Tensor expected = project(part, group.first->projection);
    differ((group.projected - expected).abs(), group.norm_sq.sqrt().sum() + expected.abs());
    result.norm_sq = result.norm_sq.defined() ? result.norm_sq + group.norm_sq : group.norm_sq;
    covered += view.elements;
    if (view.elements == gradient.numel()) return result;
    const at::Tensor sq = part.to(at::kDouble).square().sum();
    covered_sq = covered_sq.defined() ? covered_sq + sq : sq;
  }
  // What no use covers has no gradient.
  if (covered < gradient.numel()) {
    const at::Tensor all = gradient.to(at::kDouble).square().sum();
    differ((all - covered_sq).abs(), all);
  }
  return result;
}

// Infinite gradients are recorded as what they are.
std::string does_not_add_up(const at::Tensor& difference, double tolerance) {
  const double found = difference.item<double>();
  if (!(found > tolerance) || std::isinf(found)) return "";
  return fmt::format(
      "the gradients of its examples do not add up to its gradient (relative difference "
      "{:.1e}): it has a part that does not come from the operators on the examples, for "
      "instance a penalty",
      found);
}

}  // namespace tycho::per_example
