// Rules of operators that give the elements of their inputs in another shape or order, or a part of
// them.
#include <ATen/ATen.h>

#include <algorithm>

#include "structure/operator_rules.h"

namespace tycho::structure {

OperatorRules::Result OperatorRules::regroup(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr) return std::nullopt;
  const auto shape = value->shape.regrouped(out.sizes());
  if (!shape) return std::nullopt;
  return Value{*shape, value->channels, value->sign, {}};
}

OperatorRules::Result OperatorRules::transpose(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr) return std::nullopt;
  const int64_t count = static_cast<int64_t>(value->shape.dims());
  if (count < 2) return same(call, out);
  int64_t a = call.integer(1, 0);
  int64_t b = call.integer(2, 1);
  a += a < 0 ? count : 0;
  b += b < 0 ? count : 0;
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
  std::swap(order[static_cast<size_t>(a)], order[static_cast<size_t>(b)]);
  return Value{value->shape.permuted(order), value->channels, value->sign, {}};
}

OperatorRules::Result OperatorRules::permute(const Call& call, const at::Tensor&) {
  const Value* value = call.value(0);
  const Argument* dims = call.at(1);
  if (value == nullptr || dims == nullptr || !dims->plain.isIntList()) return std::nullopt;
  std::vector<int64_t> order = dims->plain.toIntVector();
  for (int64_t& dim : order) dim += dim < 0 ? static_cast<int64_t>(value->shape.dims()) : 0;
  return Value{value->shape.permuted(order), value->channels, value->sign, {}};
}

OperatorRules::Result OperatorRules::expand(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr) return std::nullopt;
  const auto shape = value->shape.padded(static_cast<size_t>(out.dim())).resized(out.sizes());
  if (!shape) return std::nullopt;
  return Value{*shape, value->channels, value->sign, {}};
}

// A part of a dimension; of the channels only equal parts.
OperatorRules::Result OperatorRules::take(const Value& value, size_t dim, int64_t start,
                                          int64_t length, bool drop, const at::Tensor& out) {
  if (dim >= value.shape.dims()) return std::nullopt;
  const int64_t size = value.shape.size(dim);
  if (!value.shape.touches(dim)) {
    Value result = value;
    result.shape = drop ? value.shape.without_dim(dim) : value.shape.with_plain(dim, length);
    if (result.shape.sizes() != out.sizes().vec()) return std::nullopt;
    return result;
  }
  if (length == size) return value;
  const auto shape = value.shape.with_leading(dim, length, drop);
  if (!shape || value.sign < 0 || length <= 0 || size % length != 0 || start % length != 0)
    return std::nullopt;
  const std::vector<int> parts = t_.classes_.split(value.channels, size / length);
  if (parts.empty()) return std::nullopt;
  return Value{*shape, parts[static_cast<size_t>(start / length)], 1, {}};
}

OperatorRules::Result OperatorRules::select(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  const Argument* dim = call.at(1);
  if (value == nullptr || !dim->plain.isInt()) return std::nullopt;
  const int64_t count = static_cast<int64_t>(value->shape.dims());
  const auto at = static_cast<size_t>(call.integer(1, 0) + (call.integer(1, 0) < 0 ? count : 0));
  if (at >= value->shape.dims()) return std::nullopt;
  int64_t index = call.integer(2, 0);
  index += index < 0 ? value->shape.size(at) : 0;
  return take(*value, at, index, 1, true, out);
}

OperatorRules::Result OperatorRules::slice(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr || call.integer(4, 1) != 1) return std::nullopt;
  const int64_t count = static_cast<int64_t>(value->shape.dims());
  const auto at = static_cast<size_t>(call.integer(1, 0) + (call.integer(1, 0) < 0 ? count : 0));
  if (at >= value->shape.dims()) return std::nullopt;
  int64_t start = call.integer(2, 0);
  start += start < 0 ? value->shape.size(at) : 0;
  return take(*value, at, std::max<int64_t>(start, 0), out.size(static_cast<int64_t>(at)), false,
              out);
}

std::optional<std::vector<Value>> OperatorRules::pieces(const Call& call,
                                                        const std::vector<at::Tensor>& outputs) {
  const Value* value = call.value(0);
  if (value == nullptr || outputs.empty()) return std::nullopt;
  const bool drop = call.name == "unbind";
  int64_t dim = call.integer(drop ? 1 : 2, 0);
  dim += dim < 0 ? static_cast<int64_t>(value->shape.dims()) : 0;
  std::vector<Value> result;
  int64_t start = 0;
  for (const at::Tensor& out : outputs) {
    const int64_t length = drop ? 1 : out.size(dim);
    Result part = take(*value, static_cast<size_t>(dim), start, length, drop, out);
    if (!part) return std::nullopt;
    result.push_back(std::move(*part));
    start += length;
  }
  return result;
}

OperatorRules::Result OperatorRules::concatenate(const Call& call, const at::Tensor& out) {
  const Argument* list = call.at(0);
  if (list == nullptr || list->list.empty()) return std::nullopt;
  int64_t dim = call.integer(1, 0);
  dim += dim < 0 ? out.dim() : 0;
  Result result;
  for (const Argument& element : list->list) {
    if (element.kind != Argument::Kind::kValue || element.value->channels < 0 ||
        element.value->shape.dims() != static_cast<size_t>(out.dim()) ||
        element.value->shape.touches(static_cast<size_t>(dim))) {
      return std::nullopt;
    }
    Value value = *element.value;
    value.shape = value.shape.with_plain(static_cast<size_t>(dim), out.size(dim));
    result = result ? add_values(*result, value, out) : value;
    if (!result) return std::nullopt;
  }
  return result;
}

}  // namespace tycho::structure
