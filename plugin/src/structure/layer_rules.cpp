#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "structure/operator_rules.h"

namespace tycho::structure {
namespace {

// Channels may be mixed linearly within a factor whose neighbours are neighbouring channels.
int64_t mixable(const ChannelShape::Layout& layout) {
  return layout.size() == 1 && layout[0].second == 1 ? layout[0].first : 1;
}

at::Tensor at_least_float(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? tensor : tensor.to(at::kFloat);
}

}  // namespace

// --- linear maps ---

// `transposed`: the weight is given as [inputs, outputs].
OperatorRules::Result OperatorRules::linear_map(const Call& call, size_t input, size_t weight,
                                                bool transposed, const at::Tensor& out) {
  if (!call.is_parameter(weight) || call.is_parameter(input)) return std::nullopt;
  const Argument& argument = call.arguments[weight];
  const at::Tensor& parameter = t_.model_.parameters[argument.parameter].tensor;
  if (argument.tensor.dim() != 2 || parameter.dim() < 1 || !parameter.is_contiguous())
    return std::nullopt;
  const int64_t inputs = argument.tensor.size(transposed ? 0 : 1);
  const int64_t outputs = argument.tensor.size(transposed ? 1 : 0);
  // Rows of the parameter's storage are outputs, as torch::nn::Linear has it, or inputs.
  const int64_t output_stride = argument.tensor.stride(transposed ? 1 : 0);
  const int64_t input_stride = argument.tensor.stride(transposed ? 0 : 1);
  const int64_t columns = parameter.numel() / parameter.size(0);
  const int64_t offset = argument.tensor.storage_offset() - parameter.storage_offset();
  const bool rows_are_outputs = (input_stride == 1 || inputs == 1) &&
                                (output_stride == inputs || outputs == 1) && inputs == columns;
  const bool rows_are_inputs = (output_stride == 1 || outputs == 1) &&
                               (input_stride == outputs || inputs == 1) && outputs == columns;
  if ((!rows_are_outputs && !rows_are_inputs) || offset % columns != 0) return std::nullopt;
  const int out_dim = rows_are_outputs ? 0 : 1;
  const int64_t rows = rows_are_outputs ? outputs : inputs;
  StructureTracer::ParameterUse use;
  use.begin = offset / columns;
  use.count = rows;
  t_.note_fact(t_.model_.parameters[argument.parameter].layer, call.name, inputs, outputs);

  const size_t last = static_cast<size_t>(out.dim()) - 1;
  const Value* value = call.value(input);
  if (value != nullptr && value->channels >= 0) {
    const size_t contracted = value->shape.dims() - 1;
    const bool inside = value->shape.only_in(contracted);
    if (!inside && !value->shape.touches(contracted) && value->shape.dims() == last + 1) {
      // Mixes something else than the channels, which stay what they are.
      t_.classes_.break_shift(value->channels);
      t_.use_parameter(argument.parameter, std::move(use));
      return Value{value->shape.with_plain(last, outputs), value->channels, value->sign, {}};
    }
    t_.classes_.break_shift(value->channels);
    if (inside) {
      StructureTracer::Slot slot;
      slot.channels = value->channels;
      slot.sign = -value->sign;
      std::vector<std::pair<int, int64_t>> axes;
      if (out_dim == 0) slot.view.push_back(rows);
      for (const ChannelShape::Factor& factor : value->shape.factors(contracted)) {
        if (factor.channel >= 0)
          axes.emplace_back(factor.channel, static_cast<int64_t>(slot.view.size()));
        slot.view.push_back(factor.size);
      }
      if (out_dim == 1) slot.view.push_back(outputs);
      std::sort(axes.begin(), axes.end());
      for (const auto& [number, axis] : axes) slot.axes.push_back(axis);
      use.slots.emplace(1 - out_dim, std::move(slot));
    } else {
      t_.classes_.break_scale(value->channels);
    }
  }
  const int channels = t_.classes_.make(outputs);
  StructureTracer::Slot slot;
  slot.view =
      out_dim == 0 ? std::vector<int64_t>{outputs, inputs} : std::vector<int64_t>{inputs, outputs};
  slot.axes = {out_dim};
  slot.channels = channels;
  use.slots.emplace(out_dim, std::move(slot));
  t_.use_parameter(argument.parameter, std::move(use));
  return fresh(out, {static_cast<int64_t>(last)}, channels);
}

// Rows of a bias of several maps (attention) are told apart like those of the weight.
void OperatorRules::add_bias(const Argument& bias, const Value& value) {
  if (bias.kind != Argument::Kind::kParameter) {
    if (bias.value) t_.break_value(*bias.value);
    t_.classes_.break_scale(value.channels);
    return;
  }
  const at::Tensor& parameter = t_.model_.parameters[bias.parameter].tensor;
  const int64_t count = bias.tensor.numel();
  if (bias.tensor.dim() != 1 || parameter.dim() != 1 || !bias.tensor.is_contiguous() ||
      !value.shape.exactly_is(value.shape.dims() - 1) || count != value.shape.channels()) {
    t_.taint(bias.parameter);
    t_.break_value(value);
    return;
  }
  t_.use_parameter(bias.parameter, {bias.tensor.storage_offset() - parameter.storage_offset(),
                                    count,
                                    {{0, {{count}, {0}, value.channels, value.sign}}}});
}

OperatorRules::Result OperatorRules::linear(const Call& call, const at::Tensor& out) {
  Result value = linear_map(call, 0, 1, false, out);
  const Argument* bias = call.at(2);
  if (value && bias != nullptr && bias->tensor.defined()) add_bias(*bias, *value);
  return value;
}

OperatorRules::Result OperatorRules::addmm(const Call& call, const at::Tensor& out) {
  Result value = linear_map(call, 1, 2, true, out);
  if (value) add_bias(call.arguments[0], *value);
  return value;
}

OperatorRules::Result OperatorRules::matmul(const Call& call, const at::Tensor& out) {
  if (call.is_parameter(1) && !call.is_parameter(0)) return linear_map(call, 0, 1, true, out);
  if (call.is_parameter(0) || call.at(1) == nullptr) return std::nullopt;
  const Value* a = call.value(0);
  const Value* b = call.value(1);
  const auto dims = static_cast<size_t>(out.dim());
  const bool has_a = a != nullptr && a->channels >= 0;
  const bool has_b = b != nullptr && b->channels >= 0;
  if (!has_a && !has_b) return plain(out);
  if (dims < 2 || call.arguments[0].tensor.dim() != out.dim() ||
      call.arguments[1].tensor.dim() != out.dim()) {
    return std::nullopt;
  }
  if (has_a && has_b) {
    // Attention weights have been through a softmax and do not scale.
    if (scales(*a) || !scales(*b)) {
      if (!contract_products(*a, dims - 1, *b, dims - 2)) return std::nullopt;
      return plain(out);
    }
    t_.break_value(*a);
    return weigh_values(*b, out);
  }
  if (has_b) return weigh_values(*b, out);
  if (a->shape.touches(dims - 1)) return std::nullopt;
  t_.classes_.mix_within(a->channels, 1);
  t_.classes_.break_shift(a->channels);
  return Value{a->shape.with_plain(dims - 1, out.size(-1)), a->channels, a->sign, {}};
}

// Queries times keys: what the ones are multiplied by the others must be divided by. None where
// more than the channels of one head is summed over.
OperatorRules::Result OperatorRules::contract_products(const Value& a, size_t dim_a, const Value& b,
                                                       size_t dim_b) {
  const size_t other_a = dim_a == a.shape.dims() - 1 ? dim_a - 1 : dim_a + 1;
  const size_t other_b = dim_b == b.shape.dims() - 1 ? dim_b - 1 : dim_b + 1;
  bool alike = a.shape.layout(dim_a) == b.shape.layout(dim_b) && !a.shape.touches(other_a) &&
               !b.shape.touches(other_b) && a.shape.touches(dim_a) &&
               a.shape.channels() == b.shape.channels();
  for (size_t i = 0; i + 2 < a.shape.dims(); ++i) {
    alike = alike && a.shape.layout(i) == b.shape.layout(i);
  }
  if (!alike) return std::nullopt;
  t_.classes_.join(a.channels, a.sign, b.channels, -b.sign);
  t_.classes_.mix_within(a.channels, mixable(a.shape.layout(dim_a)));
  t_.classes_.break_shift(a.channels);
  t_.classes_.see_product(a.channels);
  return Value{};
}

// Weights that do not scale times values, summed over positions.
OperatorRules::Result OperatorRules::weigh_values(const Value& values, const at::Tensor& out) {
  const size_t dims = values.shape.dims();
  if (values.shape.touches(dims - 2)) return std::nullopt;
  t_.classes_.mix_within(values.channels, mixable(values.shape.layout(dims - 1)));
  t_.classes_.break_shift(values.channels);
  t_.classes_.see_attention(values.channels);
  return Value{values.shape.with_plain(dims - 2, out.size(-2)), values.channels, values.sign, {}};
}

OperatorRules::Result OperatorRules::attention(const Call& call, const at::Tensor& out) {
  const Value* query = call.value(0);
  const Value* key = call.value(1);
  const Value* value = call.value(2);
  if (call.value(3) != nullptr || call.is_parameter(3)) return std::nullopt;  // a learned bias
  if (query != nullptr && key != nullptr && query->channels >= 0 && key->channels >= 0) {
    if (query->shape.dims() < 2 || query->shape.dims() != key->shape.dims() ||
        !contract_products(*query, query->shape.dims() - 1, *key, key->shape.dims() - 1)) {
      return std::nullopt;
    }
  } else {
    if (query != nullptr) t_.break_value(*query);
    if (key != nullptr) t_.break_value(*key);
  }
  if (value == nullptr || value->channels < 0) return plain(out);
  return weigh_values(*value, out);
}

// --- convolutions ---

OperatorRules::Result OperatorRules::convolution(const Call& call, const at::Tensor& out) {
  return convolve(call, out, false, call.integer(6, 1));
}

OperatorRules::Result OperatorRules::transposed_convolution(const Call& call,
                                                            const at::Tensor& out) {
  return convolve(call, out, true, call.integer(6, 1));
}

OperatorRules::Result OperatorRules::convolve(const Call& call, const at::Tensor& out,
                                              bool transposed, int64_t groups) {
  if (!call.is_parameter(1) || call.is_parameter(0) || !whole(call.arguments[1]))
    return std::nullopt;
  const Argument& weight = call.arguments[1];
  const int64_t rows = weight.tensor.size(0);
  const int64_t columns = weight.tensor.size(1);
  const int64_t kernel = weight.tensor.numel() / std::max<int64_t>(rows * columns, 1);
  const int64_t inputs = transposed ? rows : columns * groups;
  const int64_t outputs = transposed ? columns * groups : rows;
  t_.note_fact(t_.model_.parameters[weight.parameter].layer, call.name,
               (transposed ? rows / groups : columns) * kernel,
               (transposed ? columns : rows / groups) * kernel);
  // Without a batch the channels come first.
  const size_t channel_dim = out.dim() == weight.tensor.dim() ? 1 : 0;
  StructureTracer::ParameterUse use;
  use.count = rows;
  // [groups, rows of a group, columns, kernel]: rows are outputs, or inputs where transposed.
  StructureTracer::Slot of_rows{{rows, columns * kernel}, {0}, -1, 1};
  StructureTracer::Slot of_columns{{groups, rows / groups, columns, kernel}, {0, 2}, -1, 1};
  StructureTracer::Slot& out_slot = transposed ? of_columns : of_rows;
  StructureTracer::Slot& in_slot = transposed ? of_rows : of_columns;
  const Value* value = call.value(0);
  if (value != nullptr && value->channels >= 0) {
    t_.classes_.break_shift(value->channels);
    if (value->shape.exactly_is(channel_dim) && value->shape.channels() == inputs) {
      in_slot.channels = value->channels;
      in_slot.sign = -value->sign;
      if (groups > 1) t_.classes_.mix_within(value->channels, 1);
      use.slots.emplace(transposed ? 0 : 1, in_slot);
    } else {
      t_.classes_.break_scale(value->channels);
    }
  }
  out_slot.channels = t_.classes_.make(outputs);
  if (groups > 1) t_.classes_.mix_within(out_slot.channels, 1);
  const int channels = out_slot.channels;
  use.slots.emplace(transposed ? 1 : 0, out_slot);
  t_.use_parameter(weight.parameter, std::move(use));
  if (call.is_parameter(2)) {
    const Argument& bias = call.arguments[2];
    if (whole(bias)) {
      t_.use_parameter(bias.parameter, {0, outputs, {{0, {{outputs}, {0}, channels, 1}}}});
    } else {
      t_.taint(bias.parameter);
      t_.classes_.break_all(channels);
    }
  } else if (call.at(2) != nullptr && call.at(2)->tensor.defined()) {
    t_.classes_.break_scale(channels);
  }
  return fresh(out, {static_cast<int64_t>(channel_dim)}, channels);
}

OperatorRules::Result OperatorRules::embedding(const Call& call, const at::Tensor& out) {
  if (!call.is_parameter(0) || !whole(call.arguments[0])) return std::nullopt;
  if (call.flag(3, false)) return std::nullopt;  // scaled by frequency: not the loss's gradient
  const Argument& table = call.arguments[0];
  const int64_t rows = table.tensor.size(0);
  const int64_t width = table.tensor.size(1);
  const int channels = t_.classes_.make(width);
  // The row that pads is read, but gets no gradient.
  if (call.integer(2, -1) >= 0) t_.classes_.break_scale(channels);
  t_.note_fact(t_.model_.parameters[table.parameter].layer, call.name, rows, width);
  t_.use_parameter(table.parameter, {0, rows, {{1, {{rows, width}, {1}, channels, 1}}}});
  return fresh(out, {out.dim() - 1}, channels);
}

// --- normalisations ---

// The output of a normalisation scales with its gain and its offset.
OperatorRules::Result OperatorRules::norm_output(const Call& call, size_t weight, size_t bias,
                                                 const at::Tensor& out,
                                                 std::vector<int64_t> channel_dims) {
  if (!call.is_parameter(weight) || !whole(call.arguments[weight])) {
    for (const size_t position : {weight, bias}) {
      if (call.is_parameter(position)) t_.taint(call.arguments[position].parameter);
    }
    return plain(out);
  }
  const Argument& gain = call.arguments[weight];
  t_.note_fact(t_.model_.parameters[gain.parameter].layer, call.name, 1, 1);
  const int channels = t_.classes_.make(gain.tensor.numel());
  t_.classes_.mix_within(channels, 1);
  const std::vector<int64_t> view = gain.tensor.sizes().vec();
  std::vector<int64_t> axes(view.size());
  std::iota(axes.begin(), axes.end(), 0);
  const int64_t rows = gain.tensor.size(0);
  t_.use_parameter(gain.parameter, {0, rows, {{0, {view, axes, channels, 1, /*gain=*/true}}}});
  if (call.is_parameter(bias) && whole(call.arguments[bias])) {
    t_.use_parameter(call.arguments[bias].parameter, {0, rows, {{0, {view, axes, channels, 1}}}});
  } else if (call.is_parameter(bias)) {
    t_.taint(call.arguments[bias].parameter);
    t_.classes_.break_all(channels);
  } else if (call.at(bias) != nullptr && call.at(bias)->tensor.defined()) {
    t_.classes_.break_scale(channels);
  }
  return fresh(out, channel_dims, channels);
}

// With x -> a x the output changes by (out - bias) epsilon / (variance + epsilon) da: what scale
// invariance is broken by.
void OperatorRules::norm_input(const Value& value, bool per_channel, const Call& call, size_t bias,
                               const at::Tensor& out, const std::vector<int64_t>& statistics_dims,
                               double epsilon, int64_t groups) {
  t_.classes_.see_norm(value.channels);
  if (per_channel) {
    t_.classes_.mix_within(value.channels, 1);
  } else {
    t_.classes_.only_uniform(value.channels);
  }
  if (epsilon == 0) return;
  // Single precision is enough for a factor, which is a correction; sums are in float64.
  const at::Tensor input = at_least_float(call.arguments[0].tensor.detach());
  at::Tensor variance;
  if (groups > 0) {
    variance = at::var(input.reshape({input.size(0), groups, -1}), {2}, false, true);
    variance =
        variance.expand({-1, -1, input.numel() / input.size(0) / groups}).reshape(input.sizes());
  } else {
    variance = at::var(input, statistics_dims, false, true);
  }
  at::Tensor centred = at_least_float(out.detach());
  const Argument* offset = call.at(bias);
  if (offset != nullptr && offset->tensor.defined()) {
    at::Tensor shift = at_least_float(offset->tensor.detach());
    if (shift.dim() == 1 && call.name != "layer_norm") {
      std::vector<int64_t> sizes(static_cast<size_t>(out.dim()), 1);
      sizes[1] = shift.numel();
      shift = shift.reshape(sizes);
    }
    centred = centred - shift;
  }
  const at::Tensor factor = centred * (epsilon / (variance + epsilon));
  // Summed over everything but the channels; within a dimension the channel may be one factor.
  std::vector<int64_t> view;
  std::vector<int64_t> others;
  for (size_t dim = 0; dim < value.shape.dims(); ++dim) {
    if (!per_channel || !value.shape.touches(dim)) {
      others.push_back(static_cast<int64_t>(view.size()));
      view.push_back(value.shape.size(dim));
      continue;
    }
    for (const ChannelShape::Factor& part : value.shape.factors(dim)) {
      if (part.channel < 0) others.push_back(static_cast<int64_t>(view.size()));
      view.push_back(part.size);
    }
  }
  out.register_hook([shared = t_.shared_, factor, view, others, channels = value.channels,
                     sign = value.sign](const at::Tensor& gradient) {
    std::lock_guard lock(shared->mutex);
    if (!shared->active || !gradient.defined()) return;
    const WorkMeter::Stretch stretch(shared->meter);
    at::NoGradGuard no_grad;
    try {
      const at::Tensor product = (at_least_float(gradient) * factor).reshape(view);
      shared->terms.push_back({channels, sign,
                               others.empty()
                                   ? product.to(at::kDouble)
                                   : product.sum(others, false, at::kDouble).reshape({-1})});
    } catch (const std::exception&) {
      shared->failed = true;
    }
  });
}

OperatorRules::Result OperatorRules::channel_norm(const Call& call, const at::Tensor& out) {
  if (call.is_parameter(0) || out.dim() < 2) return std::nullopt;
  const Value* value = call.value(0);
  if (value != nullptr && value->channels >= 0) {
    t_.classes_.break_shift(value->channels);
    const bool batch = call.name == "batch_norm";
    if (call.flag(5, false) && value->shape.only_in(1)) {
      std::vector<int64_t> dims;
      if (batch) dims.push_back(0);
      for (int64_t dim = 2; dim < out.dim(); ++dim) dims.push_back(dim);
      norm_input(*value, true, call, 2, out, dims, call.number(7, 0), 0);
    } else {
      t_.classes_.break_scale(value->channels);  // Divides by something that does not change.
    }
  }
  return norm_output(call, 1, 2, out, {1});
}

OperatorRules::Result OperatorRules::layer_norm(const Call& call, const at::Tensor& out) {
  const Argument* shape = call.at(1);
  if (call.is_parameter(0) || shape == nullptr || !shape->plain.isIntList()) return std::nullopt;
  const auto normalized = static_cast<int64_t>(shape->plain.toIntVector().size());
  std::vector<int64_t> dims;
  for (int64_t dim = out.dim() - normalized; dim < out.dim(); ++dim) dims.push_back(dim);
  const Value* value = call.value(0);
  if (value != nullptr && value->channels >= 0) {
    bool inside = true;
    for (int64_t dim = 0; dim < out.dim() - normalized; ++dim) {
      inside = inside && !value->shape.touches(static_cast<size_t>(dim));
    }
    if (inside) {
      t_.classes_.see_shift(value->channels);
    } else {
      t_.classes_.break_shift(value->channels);
    }
    norm_input(*value, false, call, 3, out, dims, call.number(4, 0), 0);
  }
  return norm_output(call, 2, 3, out, dims);
}

OperatorRules::Result OperatorRules::group_norm(const Call& call, const at::Tensor& out) {
  if (call.is_parameter(0) || out.dim() < 2) return std::nullopt;
  const Value* value = call.value(0);
  if (value != nullptr && value->channels >= 0) {
    t_.classes_.break_shift(value->channels);
    norm_input(*value, false, call, 3, out, {}, call.number(4, 0), call.integer(1, 1));
  }
  return norm_output(call, 2, 3, out, {1});
}

}  // namespace tycho::structure
