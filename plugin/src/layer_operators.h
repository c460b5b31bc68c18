#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tycho {

/// A parameter, or a view of one, among an operator's arguments.
struct ParameterUse {
  uint32_t parameter = 0;
  size_t position = 0;
  at::Tensor argument;
};

/// What is known of operators as parts of layers: functions of names and arguments, no state.
namespace layer_operators {

/// Whether a module is one of LibTorch's own, of which it is known which operators it calls.
/// Modules derived from them are not.
bool is_library(const std::string& module_type);
/// Of a module of LibTorch's: whether it is this operator, used in this way, that makes its output.
/// `weight`: the parameter itself, of which use.argument may be a view.
bool makes_output(const std::string& module_type, std::string_view name, const ParameterUse& use,
                  const at::Tensor& weight);
/// Not empty: no operator of this module of LibTorch's makes its output, and why.
std::string why_no_output(const std::string& module_type);

/// The dimension of an operator's output along which the units of its parameter lie. Nothing: not
/// known.
std::optional<int64_t> unit_dimension(std::string_view name, const ParameterUse& use,
                                      const at::Tensor& output);

/// Whether the operator gives max(x, 0) of its first argument, and perhaps something above.
bool is_relu(std::string_view name, c10::ArrayRef<const c10::IValue> inputs);
/// Sums, differences, products and quotients, element by element.
bool is_arithmetic(std::string_view name);
/// Whether it adds or subtracts.
bool is_sum(std::string_view name);
bool is_difference(std::string_view name);
/// Whether the output holds the elements of the first argument, perhaps in another shape.
bool is_reshape(std::string_view name);
/// Whether an operator takes the argument at `position` for a weight or a bias.
bool takes_weight(std::string_view name, size_t position);
/// Whether it multiplies two tensors as matrices, of which either may be a weight.
bool is_product(std::string_view name);
/// Whether the output holds numbers although no argument does.
bool draws_numbers(std::string_view name);

}  // namespace layer_operators
}  // namespace tycho
