// Rules of operators that act on elements, or on several of them together: sums, products,
// activations, pooling, reductions, losses.
#include <ATen/ATen.h>

#include <algorithm>

#include "structure/operator_rules.h"

namespace tycho::structure {

OperatorRules::Result OperatorRules::same(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr || value->shape.sizes() != out.sizes().vec()) return std::nullopt;
  return *value;
}

OperatorRules::Result OperatorRules::homogeneous(const Call& call, const at::Tensor& out) {
  const bool at_zero = call.name != "threshold" || call.number(2, 1) == 0;
  const bool from_zero =
      (call.name != "threshold" && call.name != "clamp_min") || call.number(1, 1) == 0;
  if (!at_zero || !from_zero) return std::nullopt;
  Result value = same(call, out);
  if (value && value->channels >= 0) {
    t_.classes_.mix_within(value->channels, 1);
    t_.classes_.break_shift(value->channels);
  }
  return value;
}

OperatorRules::Result OperatorRules::dropout(const Call& call, const at::Tensor& out) {
  Result value = same(call, out);
  if (value && value->channels >= 0 && call.flag(2, true) && call.number(1, 1) > 0) {
    t_.classes_.mix_within(value->channels, 1);
    t_.classes_.break_shift(value->channels);
  }
  return value;
}

OperatorRules::Result OperatorRules::add_values(const Value& a, const Value& b,
                                                const at::Tensor& out) {
  const size_t dims = static_cast<size_t>(out.dim());
  const ChannelShape shape_a = a.shape.padded(dims);
  const ChannelShape shape_b = b.shape.padded(dims);
  if (a.channels < 0 && b.channels < 0) return plain(out);
  if (a.channels < 0 || b.channels < 0) {
    const Value& scaled = a.channels >= 0 ? a : b;
    t_.classes_.break_scale(scaled.channels);
    const auto shape = scaled.shape.padded(dims).resized(out.sizes());
    if (!shape) return std::nullopt;
    return Value{*shape, scaled.channels, scaled.sign, {}};
  }
  for (size_t i = 0; i < dims; ++i) {
    if (!shape_a.touches(i) && !shape_b.touches(i)) continue;
    const auto& first = shape_a.factors(i);
    const auto& second = shape_b.factors(i);
    const bool alike =
        first.size() == second.size() &&
        std::equal(first.begin(), first.end(), second.begin(), [](const auto& x, const auto& y) {
          return x.size == y.size && x.channel == y.channel;
        });
    if (!alike) return std::nullopt;
  }
  const auto shape = shape_a.resized(out.sizes());
  if (!shape) return std::nullopt;
  t_.classes_.join(a.channels, a.sign, b.channels, b.sign);
  return Value{*shape, a.channels, a.sign, {}};
}

// A bias, or a table of positions: scales with the value it is added to.
OperatorRules::Result OperatorRules::add_parameter(const Argument& parameter, const Value& value,
                                                   const at::Tensor& out) {
  const size_t dims = static_cast<size_t>(out.dim());
  StructureTracer::ParameterUse use;
  use.count = t_.model_.parameters[parameter.parameter].tensor.dim() > 0
                  ? t_.model_.parameters[parameter.parameter].tensor.size(0)
                  : 1;
  if (value.channels < 0) {
    t_.use_parameter(parameter.parameter, std::move(use));
    return plain(out);
  }
  const auto shape = value.shape.padded(dims).resized(out.sizes());
  if (!shape || !whole(parameter)) return std::nullopt;
  const ChannelShape of_parameter = ChannelShape(parameter.tensor.sizes()).padded(dims);
  StructureTracer::Slot slot;
  slot.channels = value.channels;
  slot.sign = value.sign;
  std::vector<std::pair<int, int64_t>> axes;
  for (size_t i = 0; i < dims; ++i) {
    if (!shape->touches(i)) {
      slot.view.push_back(of_parameter.size(i));
      continue;
    }
    if (of_parameter.size(i) != shape->size(i)) {  // The same number for all channels.
      t_.classes_.break_scale(value.channels);
      t_.use_parameter(parameter.parameter, std::move(use));
      return Value{*shape, value.channels, value.sign, {}};
    }
    for (const ChannelShape::Factor& factor : shape->factors(i)) {
      if (factor.channel >= 0)
        axes.emplace_back(factor.channel, static_cast<int64_t>(slot.view.size()));
      slot.view.push_back(factor.size);
    }
  }
  std::sort(axes.begin(), axes.end());
  for (const auto& [number, axis] : axes) slot.axes.push_back(axis);
  // A bias of one dimension is told apart by rows, like the weight it belongs to.
  if (parameter.tensor.dim() == 1) {
    slot.view = {parameter.tensor.size(0)};
    if (slot.axes.size() != 1) {
      slot.view.clear();
      slot.axes.clear();
      const auto& factors = shape->factors(dims - 1);
      for (const ChannelShape::Factor& factor : factors) slot.view.push_back(factor.size);
      std::vector<std::pair<int, int64_t>> order;
      for (size_t i = 0; i < factors.size(); ++i) {
        if (factors[i].channel >= 0)
          order.emplace_back(factors[i].channel, static_cast<int64_t>(i));
      }
      std::sort(order.begin(), order.end());
      for (const auto& [number, axis] : order) slot.axes.push_back(axis);
    } else {
      slot.axes = {0};
    }
  }
  use.slots.emplace(0, std::move(slot));
  t_.use_parameter(parameter.parameter, std::move(use));
  return Value{*shape, value.channels, value.sign, {}};
}

OperatorRules::Result OperatorRules::add(const Call& call, const at::Tensor& out) {
  const Argument* first = call.at(0);
  const Argument* second = call.at(1);
  if (first == nullptr || second == nullptr) return std::nullopt;
  if (first->kind == Argument::Kind::kValue && second->kind == Argument::Kind::kValue)
    return add_values(*first->value, *second->value, out);
  if (first->kind == Argument::Kind::kParameter) std::swap(first, second);
  if (second->kind == Argument::Kind::kParameter) {
    if (first->kind == Argument::Kind::kValue) return add_parameter(*second, *first->value, out);
    if (first->kind == Argument::Kind::kParameter) return std::nullopt;
    return add_parameter(*second, plain(out), out);
  }
  // Something that does not scale is added.
  const Argument* followed = first->kind == Argument::Kind::kValue ? first : second;
  if (!followed->value) return std::nullopt;
  const Value& value = *followed->value;
  return add_values(value, plain(out), out);
}

OperatorRules::Result OperatorRules::multiply(const Call& call, const at::Tensor& out) {
  for (const size_t position : {size_t{0}, size_t{1}}) {
    if (call.is_parameter(position)) return multiply_parameter(call, position, out);
  }
  size_t scaled = call.value(0) != nullptr ? 0 : 1;
  if (call.value(0) != nullptr && call.value(1) != nullptr) {
    if (scales(*call.value(0)) && scales(*call.value(1))) return std::nullopt;
    scaled = scales(*call.value(1)) ? 1 : 0;
    t_.break_value(*call.value(1 - scaled));
  }
  const Value* first = call.value(scaled);
  const size_t dims = static_cast<size_t>(out.dim());
  if (first->channels < 0) return plain(out);
  const auto shape = first->shape.padded(dims).resized(out.sizes());
  if (!shape) return std::nullopt;
  const Argument* other = call.at(1 - scaled);
  if (other != nullptr && other->tensor.defined() && other->tensor.dim() > 0) {
    const ChannelShape factor = ChannelShape(other->tensor.sizes()).padded(dims);
    bool alike = true;
    for (size_t i = 0; i < dims; ++i) alike = alike && (!shape->touches(i) || factor.size(i) == 1);
    if (!alike) t_.classes_.mix_within(first->channels, 1);
    t_.classes_.break_shift(first->channels);
  }
  return Value{*shape, first->channels, first->sign, {}};
}

// A gain on something that does not scale, as in a normalisation written by hand.
OperatorRules::Result OperatorRules::multiply_parameter(const Call& call, size_t position,
                                                        const at::Tensor& out) {
  const Value* value = call.value(1 - position);
  const Argument& gain = call.arguments[position];
  if (value == nullptr || gain.tensor.dim() != 1 || !whole(gain) || out.dim() == 0 ||
      gain.tensor.size(0) != out.size(out.dim() - 1)) {
    return std::nullopt;
  }
  t_.break_value(*value);
  const int channels = t_.classes_.make(gain.tensor.size(0));
  t_.classes_.mix_within(channels, 1);
  const int64_t rows = gain.tensor.size(0);
  t_.use_parameter(gain.parameter, {0, rows, {{0, {{rows}, {0}, channels, 1, /*gain=*/true}}}});
  return fresh(out, {out.dim() - 1}, channels);
}

OperatorRules::Result OperatorRules::divide(const Call& call, const at::Tensor& out) {
  const Argument* divisor = call.at(1);
  if (divisor == nullptr || divisor->kind == Argument::Kind::kParameter) return std::nullopt;
  if (call.value(0) == nullptr || call.value(1) != nullptr) return std::nullopt;
  return multiply(call, out);
}

OperatorRules::Result OperatorRules::average_pool(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr) return std::nullopt;
  const auto shape = value->shape.resized(out.sizes());
  if (!shape) return std::nullopt;
  if (value->channels >= 0) t_.classes_.break_shift(value->channels);
  return Value{*shape, value->channels, value->sign, {}};
}

OperatorRules::Result OperatorRules::max_pool(const Call& call, const at::Tensor& out) {
  Result value = average_pool(call, out);
  if (value && value->channels >= 0) t_.classes_.mix_within(value->channels, 1);
  return value;
}

OperatorRules::Result OperatorRules::pad(const Call& call, const at::Tensor& out) {
  if (call.number(2, 1) != 0) return std::nullopt;
  return average_pool(call, out);
}

OperatorRules::Result OperatorRules::reduce(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  const Argument* dims = call.at(1);
  if (value == nullptr || dims == nullptr || !dims->plain.isIntList()) return std::nullopt;
  const int64_t count = static_cast<int64_t>(value->shape.dims());
  std::vector<int64_t> reduced = dims->plain.toIntVector();
  for (int64_t& dim : reduced) dim += dim < 0 ? count : 0;
  std::sort(reduced.rbegin(), reduced.rend());
  if (reduced.empty()) return std::nullopt;
  Value result = *value;
  for (const int64_t dim : reduced) {
    const auto index = static_cast<size_t>(dim);
    if (value->shape.touches(index)) return std::nullopt;
    result.shape =
        call.flag(2, false) ? result.shape.with_plain(index, 1) : result.shape.without_dim(index);
  }
  if (result.shape.sizes() != out.sizes().vec()) return std::nullopt;
  return result;
}

// Does not change when a number is added to all channels.
OperatorRules::Result OperatorRules::softmax(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr) return std::nullopt;
  if (value->channels >= 0) {
    const int64_t dim = call.integer(1, 0);
    t_.classes_.break_scale(value->channels);
    if (value->shape.exactly_is(
            static_cast<size_t>(dim < 0 ? dim + static_cast<int64_t>(value->shape.dims()) : dim))) {
      t_.classes_.see_shift(value->channels);
    } else {
      t_.classes_.break_shift(value->channels);
    }
  }
  return plain(out);
}

OperatorRules::Result OperatorRules::cross_entropy(const Call& call, const at::Tensor& out) {
  const Value* value = call.value(0);
  if (value == nullptr || value->shape.dims() == 0) return std::nullopt;
  if (value->channels >= 0) {
    t_.classes_.break_scale(value->channels);
    if (call.value(1) == nullptr && value->shape.exactly_is(value->shape.dims() > 1 ? 1 : 0)) {
      t_.classes_.see_shift(value->channels);
    } else {
      t_.classes_.break_shift(value->channels);
    }
  }
  return plain(out);
}

}  // namespace tycho::structure
