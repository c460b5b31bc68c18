#include "features/layer_call.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <stdexcept>
#include <string_view>
#include <unordered_map>

#include "operator_arguments.h"

namespace tycho {
namespace {

struct Rule {
  LayerOperator::Kind kind;
  size_t operand;
  size_t weight;
  std::optional<size_t> bias;
};

const std::unordered_map<std::string_view, Rule>& rules() {
  using Kind = LayerOperator::Kind;
  static const auto* table = new std::unordered_map<std::string_view, Rule>{
      {"aten::linear", {Kind::kLinear, 0, 1, 2}},
      {"aten::addmm", {Kind::kLinear, 1, 2, 0}},
      {"aten::mm", {Kind::kLinear, 0, 1, std::nullopt}},
      {"aten::matmul", {Kind::kLinear, 0, 1, std::nullopt}},
      {"aten::conv1d", {Kind::kConvolution, 0, 1, 2}},
      {"aten::conv2d", {Kind::kConvolution, 0, 1, 2}},
      {"aten::conv3d", {Kind::kConvolution, 0, 1, 2}},
      {"aten::conv_transpose1d", {Kind::kConvolution, 0, 1, 2}},
      {"aten::conv_transpose2d", {Kind::kConvolution, 0, 1, 2}},
      {"aten::conv_transpose3d", {Kind::kConvolution, 0, 1, 2}},
      {"aten::embedding", {Kind::kEmbedding, 1, 0, std::nullopt}},
      {"aten::layer_norm", {Kind::kScale, 0, 2, 3}},
      {"aten::group_norm", {Kind::kScale, 0, 2, 3}},
      {"aten::batch_norm", {Kind::kScale, 0, 1, 2}},
      {"aten::instance_norm", {Kind::kScale, 0, 1, 2}},
      {"aten::mul", {Kind::kScale, 0, 1, std::nullopt}},
      {"aten::mul_", {Kind::kScale, 0, 1, std::nullopt}},
  };
  return *table;
}

std::vector<int64_t> list_of(const c10::IValue& value) {
  return value.isInt() ? std::vector<int64_t>{value.toInt()} : value.toIntVector();
}

}  // namespace

ParameterView::ParameterView(const at::Tensor& argument, const at::Tensor& parameter)
    : sizes_(argument.sizes().vec()),
      strides_(argument.strides().vec()),
      parameter_sizes_(parameter.sizes().vec()),
      parameter_strides_(parameter.strides().vec()),
      offset_(argument.storage_offset() - parameter.storage_offset()) {}

at::Tensor ParameterView::of(const at::Tensor& values) const {
  at::Tensor base = values;
  if (values.strides() != at::IntArrayRef(parameter_strides_)) {
    base = at::empty_strided(parameter_sizes_, parameter_strides_, values.options());
    base.copy_(values);
  }
  return base.as_strided(sizes_, strides_, base.storage_offset() + offset_);
}

std::shared_ptr<LayerCall> LayerCall::make(const std::string& name,
                                           const std::vector<c10::IValue>& arguments,
                                           size_t position, const at::Tensor& parameter,
                                           std::string* why_not) {
  const auto found = rules().find(name);
  if (found == rules().end()) {
    if (name != "aten::add" && name != "aten::add_") {
      *why_not = fmt::format("{} is not an operator that is known here", name);
    }
    return nullptr;
  }
  Rule rule = found->second;
  if (rule.bias == position) return nullptr;
  const at::Tensor argument = arguments[position].toTensor();
  // Multiplication is commutative.
  if (name == "aten::mul" && position == 0) std::swap(rule.operand, rule.weight);
  bool known = position == rule.weight && arguments.size() > rule.operand &&
               arguments[rule.operand].isTensor();
  if (name == "aten::addmm") {
    known = known && arguments.size() >= 5 && is_one(arguments[3]) && is_one(arguments[4]);
  }
  if (name == "aten::matmul") known = known && argument.dim() == 2;
  if (!known) {
    *why_not =
        fmt::format("its use as argument {} of {} is not one that is known here", position, name);
    return nullptr;
  }
  std::shared_ptr<LayerCall> call(new LayerCall(name, ParameterView(argument, parameter)));
  call->kind_ = rule.kind;
  call->operand_ = rule.operand;
  call->bias_position_ = rule.bias;
  if (rule.kind == Kind::kConvolution) call->dims_ = argument.dim() - 2;
  const bool running = name == "aten::batch_norm" || name == "aten::instance_norm";
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = arguments[i];
    if (!value.isTensor()) {
      call->arguments_.push_back(value);
    } else if (running && (i == 3 || i == 4) && value.toTensor().defined()) {
      call->arguments_.emplace_back(value.toTensor().detach().clone());
    } else {
      call->arguments_.emplace_back(at::Tensor());
    }
  }
  return call;
}

bool LayerCall::transposed_convolution() const {
  return name_.find("transpose") != std::string::npos;
}

at::Tensor LayerCall::convolve(const at::Tensor& input, const at::Tensor& weight) const {
  const auto& a = arguments_;
  const std::vector<int64_t> stride = list_of(a[3]);
  const int64_t groups = a[6].toInt();
  if (transposed_convolution()) {
    const std::vector<int64_t> padding = list_of(a[4]);
    const std::vector<int64_t> more = list_of(a[5]);
    const std::vector<int64_t> dilation = list_of(a[7]);
    if (dims_ == 1) {
      return at::conv_transpose1d(input, weight, {}, stride, padding, more, groups, dilation);
    }
    if (dims_ == 2) {
      return at::conv_transpose2d(input, weight, {}, stride, padding, more, groups, dilation);
    }
    return at::conv_transpose3d(input, weight, {}, stride, padding, more, groups, dilation);
  }
  const std::vector<int64_t> dilation = list_of(a[5]);
  if (a[4].isString()) {
    const std::string padding = a[4].toStringRef();
    if (dims_ == 1) return at::conv1d(input, weight, {}, stride, padding, dilation, groups);
    if (dims_ == 2) return at::conv2d(input, weight, {}, stride, padding, dilation, groups);
    return at::conv3d(input, weight, {}, stride, padding, dilation, groups);
  }
  const std::vector<int64_t> padding = list_of(a[4]);
  if (dims_ == 1) return at::conv1d(input, weight, {}, stride, padding, dilation, groups);
  if (dims_ == 2) return at::conv2d(input, weight, {}, stride, padding, dilation, groups);
  return at::conv3d(input, weight, {}, stride, padding, dilation, groups);
}

at::Tensor LayerCall::normalise(const at::Tensor& input, const at::Tensor& weight,
                                const at::Tensor& bias) const {
  const auto& a = arguments_;
  if (name_ == "aten::layer_norm") {
    return at::layer_norm(input, a[1].toIntVector(), weight, bias, a[4].toDouble());
  }
  if (name_ == "aten::group_norm") {
    return at::group_norm(input, a[1].toInt(), weight, bias, a[4].toDouble());
  }
  // Running statistics are updated by the operator: copies.
  const auto copy = [](const c10::IValue& value) {
    const at::Tensor tensor = value.toTensor();
    return tensor.defined() ? tensor.clone() : tensor;
  };
  const at::Tensor mean = copy(a[3]);
  const at::Tensor variance = copy(a[4]);
  if (name_ == "aten::batch_norm") {
    return at::batch_norm(input, weight, bias, mean, variance, a[5].toBool(), a[6].toDouble(),
                          a[7].toDouble(), a[8].toBool());
  }
  return at::instance_norm(input, weight, bias, mean, variance, a[5].toBool(), a[6].toDouble(),
                           a[7].toDouble(), a[8].toBool());
}

at::Tensor LayerCall::apply(const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& bias) const {
  const at::NoGradGuard no_grad;
  const at::Tensor w = weight_.of(weight.detach());
  at::Tensor b;
  if (bias_ && bias.defined()) b = bias_->of(bias.detach());
  at::Tensor output;
  switch (kind_) {
    case Kind::kLinear:
      output = at::matmul(input, name_ == "aten::linear" ? w.t() : w);
      break;
    case Kind::kConvolution: {
      output = convolve(input, w);
      // One number for each channel, the dimension after the examples.
      if (b.defined() && b.dim() == 1) {
        std::vector<int64_t> shape(static_cast<size_t>(dims_) + 1, 1);
        shape[0] = b.size(0);
        b = b.reshape(shape);
      }
      break;
    }
    case Kind::kEmbedding:
      output = at::embedding(w, input);
      break;
    case Kind::kScale:
      if (name_ != "aten::mul" && name_ != "aten::mul_") return normalise(input, w, b);
      output = input * w;
      break;
  }
  return b.defined() ? output + b : output;
}

at::Tensor LayerCall::matrix(const at::Tensor& weight) const {
  if (kind_ == Kind::kLinear) {
    const at::Tensor w = weight_.of(weight.detach());
    return name_ == "aten::linear" ? w : w.t();
  }
  if (kind_ == Kind::kConvolution && !transposed_convolution() && arguments_[6].toInt() == 1) {
    const at::Tensor w = weight_.of(weight.detach());
    return w.reshape({w.size(0), -1});
  }
  return {};
}

at::Tensor LayerCall::rows(const at::Tensor& output) const {
  if (kind_ == Kind::kScale) return {};
  if (kind_ == Kind::kConvolution) {
    const int64_t channel = output.dim() - dims_ - 1;
    const at::Tensor last = output.movedim(channel, -1);
    return last.reshape({-1, last.size(-1)});
  }
  return output.dim() == 1 ? output.unsqueeze(0) : output.reshape({-1, output.size(-1)});
}

}  // namespace tycho
