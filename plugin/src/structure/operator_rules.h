#pragma once

#include <optional>
#include <vector>

#include "structure/structure_tracer.h"

namespace tycho::structure {

/// What each operator does to the scalings and shifts of its inputs: one rule for each, from the
/// table in operator_rules.cpp. Rules are in a file for each family. They write what they find into
/// the tracer: which symmetries break, and how parameters scale.
class OperatorRules {
 public:
  explicit OperatorRules(StructureTracer* tracer) : t_(*tracer) {}

  /// Values of the outputs; none where the operator is not known, or not in this use.
  std::optional<std::vector<Value>> apply(const Call& call, const std::vector<at::Tensor>& outputs);

 private:
  using Result = std::optional<Value>;
  using Rule = Result (OperatorRules::*)(const Call&, const at::Tensor&);
  static const std::unordered_map<std::string_view, Rule>& rules();

  // Layers: layer_rules.cpp.
  Result linear(const Call& call, const at::Tensor& out);
  Result addmm(const Call& call, const at::Tensor& out);
  Result matmul(const Call& call, const at::Tensor& out);
  Result convolution(const Call& call, const at::Tensor& out);
  Result transposed_convolution(const Call& call, const at::Tensor& out);
  Result embedding(const Call& call, const at::Tensor& out);
  Result channel_norm(const Call& call, const at::Tensor& out);
  Result layer_norm(const Call& call, const at::Tensor& out);
  Result group_norm(const Call& call, const at::Tensor& out);
  Result attention(const Call& call, const at::Tensor& out);

  // Elementwise, and over elements: elementwise_rules.cpp.
  Result same(const Call& call, const at::Tensor& out);
  Result homogeneous(const Call& call, const at::Tensor& out);
  Result dropout(const Call& call, const at::Tensor& out);
  Result add(const Call& call, const at::Tensor& out);
  Result multiply(const Call& call, const at::Tensor& out);
  Result divide(const Call& call, const at::Tensor& out);
  Result average_pool(const Call& call, const at::Tensor& out);
  Result max_pool(const Call& call, const at::Tensor& out);
  Result pad(const Call& call, const at::Tensor& out);
  Result reduce(const Call& call, const at::Tensor& out);
  Result softmax(const Call& call, const at::Tensor& out);
  Result cross_entropy(const Call& call, const at::Tensor& out);

  // Shape: shape_rules.cpp.
  Result regroup(const Call& call, const at::Tensor& out);
  Result transpose(const Call& call, const at::Tensor& out);
  Result permute(const Call& call, const at::Tensor& out);
  Result expand(const Call& call, const at::Tensor& out);
  Result select(const Call& call, const at::Tensor& out);
  Result slice(const Call& call, const at::Tensor& out);
  Result concatenate(const Call& call, const at::Tensor& out);
  std::optional<std::vector<Value>> pieces(const Call& call,
                                           const std::vector<at::Tensor>& outputs);

  bool scales(const Value& value) const;
  Result multiply_parameter(const Call& call, size_t position, const at::Tensor& out);
  Result linear_map(const Call& call, size_t input, size_t weight, bool transposed,
                    const at::Tensor& out);
  void add_bias(const Argument& bias, const Value& value);
  Result convolve(const Call& call, const at::Tensor& out, bool transposed, int64_t groups);
  Result add_parameter(const Argument& parameter, const Value& value, const at::Tensor& out);
  Result add_values(const Value& a, const Value& b, const at::Tensor& out);
  Result contract_products(const Value& a, size_t dim_a, const Value& b, size_t dim_b);
  Result weigh_values(const Value& values, const at::Tensor& out);
  Result take(const Value& value, size_t dim, int64_t start, int64_t length, bool drop,
              const at::Tensor& out);
  void norm_input(const Value& value, bool per_channel, const Call& call, size_t bias,
                  const at::Tensor& out, const std::vector<int64_t>& statistics_dims,
                  double epsilon, int64_t groups);
  Result norm_output(const Call& call, size_t weight, size_t bias, const at::Tensor& out,
                     std::vector<int64_t> channel_dims);
  bool whole(const Argument& argument) const;
  Value plain(const at::Tensor& out) const;
  Value fresh(const at::Tensor& out, c10::IntArrayRef dims, int channels) const;

  StructureTracer& t_;
};

}  // namespace tycho::structure
