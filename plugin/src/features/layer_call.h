#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tycho/feature_pass.h"

namespace tycho {

/// How an operator's argument lies in a parameter: C++ modules pass views of their weights.
class ParameterView {
 public:
  ParameterView(const at::Tensor& argument, const at::Tensor& parameter);
  /// The same view of other values of the parameter's shape.
  at::Tensor of(const at::Tensor& values) const;

 private:
  std::vector<int64_t> sizes_, strides_, parameter_sizes_, parameter_strides_;
  int64_t offset_;
};

/// One call of an operator, of which the weight is a parameter.
class LayerCall : public LayerOperator {
 public:
  /// nullptr: not an operator that is known with its weight as argument `position`, of which
  /// `why_not` then says something where the argument can be no bias either.
  static std::shared_ptr<LayerCall> make(const std::string& name,
                                         const std::vector<c10::IValue>& arguments, size_t position,
                                         const at::Tensor& parameter, std::string* why_not);

  size_t operand() const { return operand_; }
  /// Which argument may be a bias.
  std::optional<size_t> bias_position() const { return bias_position_; }
  /// Of this operator, or added to its output by another.
  void set_bias(const at::Tensor& argument, const at::Tensor& parameter) {
    bias_.emplace(argument, parameter);
  }
  bool has_bias() const { return bias_.has_value(); }

  Kind kind() const override { return kind_; }
  at::Tensor apply(const at::Tensor& input, const at::Tensor& weight,
                   const at::Tensor& bias) const override;
  at::Tensor matrix(const at::Tensor& weight) const override;
  at::Tensor rows(const at::Tensor& output) const override;

 private:
  LayerCall(std::string name, ParameterView weight) : name_(std::move(name)), weight_(weight) {}
  at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight) const;
  at::Tensor normalise(const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor& bias) const;
  bool transposed_convolution() const;

  std::string name_;
  Kind kind_ = Kind::kLinear;
  ParameterView weight_;
  std::optional<ParameterView> bias_;
  size_t operand_ = 0;
  std::optional<size_t> bias_position_;
  int64_t dims_ = 0;                    // of a convolution
  std::vector<c10::IValue> arguments_;  // without tensors but the running statistics of BatchNorm
};

}  // namespace tycho
