#include "structure/operator_rules.h"

#include <ATen/ATen.h>

#include <utility>

namespace tycho::structure {

const std::unordered_map<std::string_view, OperatorRules::Rule>& OperatorRules::rules() {
  using R = OperatorRules;
  static const std::unordered_map<std::string_view, Rule> table = {
      {"linear", &R::linear},
      {"addmm", &R::addmm},
      {"mm", &R::matmul},
      {"bmm", &R::matmul},
      {"matmul", &R::matmul},
      {"conv1d", &R::convolution},
      {"conv2d", &R::convolution},
      {"conv3d", &R::convolution},
      {"conv_transpose1d", &R::transposed_convolution},
      {"conv_transpose2d", &R::transposed_convolution},
      {"conv_transpose3d", &R::transposed_convolution},
      {"embedding", &R::embedding},
      {"batch_norm", &R::channel_norm},
      {"instance_norm", &R::channel_norm},
      {"layer_norm", &R::layer_norm},
      {"group_norm", &R::group_norm},
      {"scaled_dot_product_attention", &R::attention},
      {"contiguous", &R::same},
      {"clone", &R::same},
      {"to", &R::same},
      {"alias", &R::same},
      {"neg", &R::same},
      {"relu", &R::homogeneous},
      {"leaky_relu", &R::homogeneous},
      {"abs", &R::homogeneous},
      {"threshold", &R::homogeneous},
      {"clamp_min", &R::homogeneous},
      {"dropout", &R::dropout},
      {"feature_dropout", &R::dropout},
      {"add", &R::add},
      {"sub", &R::add},
      {"mul", &R::multiply},
      {"div", &R::divide},
      {"avg_pool1d", &R::average_pool},
      {"avg_pool2d", &R::average_pool},
      {"avg_pool3d", &R::average_pool},
      {"adaptive_avg_pool1d", &R::average_pool},
      {"adaptive_avg_pool2d", &R::average_pool},
      {"adaptive_avg_pool3d", &R::average_pool},
      {"upsample_nearest1d", &R::average_pool},
      {"upsample_nearest2d", &R::average_pool},
      {"upsample_bilinear2d", &R::average_pool},
      {"max_pool1d", &R::max_pool},
      {"max_pool2d", &R::max_pool},
      {"max_pool3d", &R::max_pool},
      {"constant_pad_nd", &R::pad},
      {"reflection_pad1d", &R::average_pool},
      {"reflection_pad2d", &R::average_pool},
      {"replication_pad1d", &R::average_pool},
      {"replication_pad2d", &R::average_pool},
      {"mean", &R::reduce},
      {"sum", &R::reduce},
      {"softmax", &R::softmax},
      {"log_softmax", &R::softmax},
      {"cross_entropy_loss", &R::cross_entropy},
      {"view", &R::regroup},
      {"reshape", &R::regroup},
      {"flatten", &R::regroup},
      {"unflatten", &R::regroup},
      {"squeeze", &R::regroup},
      {"unsqueeze", &R::regroup},
      {"_unsafe_view", &R::regroup},
      {"view_as", &R::regroup},
      {"reshape_as", &R::regroup},
      {"t", &R::transpose},
      {"transpose", &R::transpose},
      {"swapaxes", &R::transpose},
      {"swapdims", &R::transpose},
      {"permute", &R::permute},
      {"expand", &R::expand},
      {"expand_as", &R::expand},
      {"select", &R::select},
      {"slice", &R::slice},
      {"narrow", &R::slice},
      {"cat", &R::concatenate},
      {"concat", &R::concatenate},
  };
  return table;
}

std::optional<std::vector<Value>> OperatorRules::apply(const Call& call,
                                                       const std::vector<at::Tensor>& outputs) {
  if (call.name == "chunk" || call.name == "split" || call.name == "split_with_sizes" ||
      call.name == "unbind") {
    return pieces(call, outputs);
  }
  const auto rule = rules().find(call.name);
  if (rule == rules().end() || outputs.size() != 1) return std::nullopt;
  Result value = (this->*rule->second)(call, outputs[0]);
  if (!value) return std::nullopt;
  return std::vector<Value>{std::move(*value)};
}

Value OperatorRules::plain(const at::Tensor& out) const {
  return {ChannelShape(out.sizes()), -1, 1, {}};
}

Value OperatorRules::fresh(const at::Tensor& out, c10::IntArrayRef dims, int channels) const {
  return {ChannelShape(out.sizes(), dims), channels, 1, {}};
}

bool OperatorRules::scales(const Value& value) const {
  return value.channels >= 0 && !t_.classes_.at(value.channels).scale_broken;
}

bool OperatorRules::whole(const Argument& argument) const {
  const at::Tensor& parameter = t_.model_.parameters[argument.parameter].tensor;
  return argument.tensor.numel() == parameter.numel() && argument.tensor.is_contiguous() &&
         parameter.is_contiguous();
}

}  // namespace tycho::structure
