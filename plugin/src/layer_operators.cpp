#include "layer_operators.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace tycho::layer_operators {
namespace {

using Name = std::string_view;

constexpr Name kNamespace = "torch::nn::";
constexpr Name kScriptNamespace = "__torch__.torch.nn.modules.";

/// "Linear" of "torch::nn::LinearImpl" and of "__torch__.torch.nn.modules.linear.Linear"; empty:
/// not one of LibTorch's own.
Name library_name(const std::string& type) {
  const Name name = type;
  if (name.substr(0, kNamespace.size()) == kNamespace) {
    Name short_name = name.substr(kNamespace.size());
    constexpr Name kImplementation = "Impl";
    if (short_name.size() > kImplementation.size() &&
        short_name.substr(short_name.size() - kImplementation.size()) == kImplementation) {
      short_name.remove_suffix(kImplementation.size());
    }
    return short_name;
  }
  if (name.substr(0, kScriptNamespace.size()) != kScriptNamespace) return {};
  return name.substr(name.rfind('.') + 1);
}

bool starts(Name name, Name with) { return name.substr(0, with.size()) == with; }

Name plain(Name name) { return starts(name, "aten::") ? name.substr(6) : name; }

Name without_mark(Name name) {
  name = plain(name);
  if (!name.empty() && name.back() == '_') name.remove_suffix(1);
  return name;
}

template <size_t N>
bool among(Name name, const std::array<Name, N>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Spatial dimensions of conv1d, conv_transpose3d and the like; 0: another operator, or not told by
/// its name.
int64_t spatial(Name name) {
  name = plain(name);
  if (!starts(name, "conv") || name.size() < 2 || name.back() != 'd') return 0;
  const char digit = name[name.size() - 2];
  return digit >= '1' && digit <= '3' ? digit - '0' : 0;
}

bool is_convolution(Name name) {
  return spatial(name) > 0 || plain(name) == "convolution" || plain(name) == "_convolution";
}

/// Whether the argument is the weight with its dimensions exchanged, as Linear hands it on.
bool is_transposed(const at::Tensor& argument, const at::Tensor& weight) {
  return argument.dim() == 2 && weight.dim() == 2 && argument.size(0) == weight.size(1) &&
         argument.size(1) == weight.size(0) && argument.stride(0) == weight.stride(1) &&
         argument.stride(1) == weight.stride(0);
}

std::optional<int64_t> last(const at::Tensor& output, int64_t from_end = 1) {
  if (output.dim() < from_end) return std::nullopt;
  return output.dim() - from_end;
}

std::optional<int64_t> second(const at::Tensor& output) {
  if (output.dim() < 2) return std::nullopt;
  return 1;
}

bool is_zero(const c10::IValue& value) {
  return (value.isInt() && value.toInt() == 0) || (value.isDouble() && value.toDouble() == 0);
}

}  // namespace

bool is_library(const std::string& module_type) { return !library_name(module_type).empty(); }

std::string why_no_output(const std::string& module_type) {
  if (library_name(module_type) != "MultiheadAttention") return {};
  return "what its own weights give stays in it: its output is that of its out_proj";
}

bool makes_output(const std::string& module_type, Name name, const ParameterUse& use,
                  const at::Tensor& weight) {
  const Name type = library_name(module_type);
  name = plain(name);
  if (type == "Linear" || type == "NonDynamicallyQuantizableLinear") {
    if (weight.dim() == 1) return name == "addmm" || name == "linear" || name == "add_";
    if (name == "linear") return use.position == 1 && use.argument.sizes() == weight.sizes();
    return (name == "addmm" || name == "matmul" || name == "mm") &&
           is_transposed(use.argument, weight);
  }
  if (type == "Conv1d" || type == "Conv2d" || type == "Conv3d" || type == "ConvTranspose1d" ||
      type == "ConvTranspose2d" || type == "ConvTranspose3d") {
    const bool transposed = starts(name, "conv_transpose");
    return is_convolution(name) && (use.position == 1 || use.position == 2) &&
           (spatial(name) == 0 || transposed == starts(type, "ConvTranspose"));
  }
  if (starts(type, "BatchNorm")) return name == "batch_norm";
  if (starts(type, "InstanceNorm")) return name == "instance_norm";
  if (type == "LayerNorm") return name == "layer_norm";
  if (type == "GroupNorm") return name == "group_norm";
  if (type == "RMSNorm") return name == "rms_norm";
  if (type == "Embedding") return name == "embedding" && use.position == 0;
  if (type == "EmbeddingBag") {
    return (name == "embedding_bag" || name == "_embedding_bag") && use.position == 0;
  }
  if (type == "PReLU") return name == "prelu";
  if (type == "Bilinear") return name == "bilinear";
  if (type == "LSTM") return name == "lstm";
  if (type == "GRU") return name == "gru";
  if (type == "RNN") return name == "rnn_tanh" || name == "rnn_relu";
  if (type == "LSTMCell") return name == "lstm_cell";
  if (type == "GRUCell") return name == "gru_cell";
  if (type == "RNNCell") return name == "rnn_tanh_cell" || name == "rnn_relu_cell";
  return false;
}

std::optional<int64_t> unit_dimension(Name name, const ParameterUse& use,
                                      const at::Tensor& output) {
  const int64_t dims = spatial(name);
  if (dims > 0) return last(output, dims + 1);
  name = plain(name);
  if (name == "convolution" || name == "_convolution") {
    return use.position == 1 ? last(output, use.argument.dim() - 1) : std::nullopt;
  }
  if (name == "linear" || name == "addmm" || name == "bilinear" || name == "embedding" ||
      name == "embedding_bag" || name == "lstm" || name == "gru" || name == "rnn_tanh" ||
      name == "rnn_relu" || name == "lstm_cell" || name == "gru_cell" || name == "rnn_tanh_cell" ||
      name == "rnn_relu_cell") {
    return last(output);
  }
  if (name == "matmul" || name == "mm" || name == "mv") {
    if (use.argument.dim() != 2) return std::nullopt;
    if (use.position == 1) return last(output);
    return last(output, output.dim() >= 2 ? 2 : 1);
  }
  if (name == "batch_norm" || name == "instance_norm" || name == "group_norm" || name == "prelu") {
    return second(output);
  }
  if (name == "layer_norm" || name == "rms_norm") {
    return use.argument.dim() == 1 ? last(output) : std::nullopt;
  }
  if (!is_arithmetic(name)) return std::nullopt;
  // The one dimension along which the parameter is not broadcast.
  std::optional<int64_t> found;
  for (int64_t i = 0; i < use.argument.dim(); ++i) {
    if (use.argument.size(i) == 1) continue;
    if (found) return std::nullopt;
    found = output.dim() - use.argument.dim() + i;
  }
  return found;
}

bool is_relu(Name name, c10::ArrayRef<const c10::IValue> inputs) {
  name = without_mark(name);
  if (name == "relu" || name == "relu6") return true;
  if (name == "clamp_min") return inputs.size() > 1 && is_zero(inputs[1]);
  if (name == "threshold") return inputs.size() > 2 && is_zero(inputs[1]) && is_zero(inputs[2]);
  if (name == "clamp" || name == "hardtanh") return inputs.size() > 1 && is_zero(inputs[1]);
  return false;
}

bool is_sum(Name name) {
  static constexpr std::array<Name, 4> kSums = {"add", "sub", "rsub", "subtract"};
  return among(without_mark(name), kSums);
}

bool is_difference(Name name) { return is_sum(name) && without_mark(name) != "add"; }

bool is_arithmetic(Name name) {
  static constexpr std::array<Name, 9> kOthers = {
      "mul", "multiply", "div", "true_divide", "divide", "neg", "addcmul", "addcdiv", "lerp"};
  return is_sum(name) || among(without_mark(name), kOthers);
}

bool is_reshape(Name name) {
  static constexpr std::array<Name, 14> kReshapes = {
      "view",    "reshape",   "flatten", "unflatten",  "transpose", "permute", "t",
      "squeeze", "unsqueeze", "movedim", "contiguous", "swapaxes",  "view_as", "alias"};
  return among(plain(name), kReshapes);
}

bool takes_weight(Name name, size_t position) {
  if (is_convolution(name)) return position == 1 || position == 2;
  name = plain(name);
  if (name == "linear" || name == "batch_norm") return position >= 1;
  if (name == "layer_norm" || name == "group_norm" || name == "bilinear") return position >= 2;
  if (name == "addmm" || name == "baddbmm") return position == 2;
  return (name == "embedding" || name == "embedding_bag") && position == 0;
}

bool is_product(Name name) {
  static constexpr std::array<Name, 5> kProducts = {"matmul", "mm", "bmm", "mv", "einsum"};
  return among(plain(name), kProducts);
}

bool draws_numbers(Name name) {
  for (const Name part : {"rand", "normal", "bernoulli", "empty", "uniform", "poisson"}) {
    if (name.find(part) != Name::npos) return true;
  }
  return false;
}

}  // namespace tycho::layer_operators
