#include "per_example.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <unordered_map>

#include "tensor_sums.h"

namespace tycho::per_example {
namespace {

enum class Family {
  kLinear,
  kAddmm,
  kMatmul,
  kAdd,
  kMultiply,
  kConvolution,
  kEmbedding,
  kNormalization
};

const std::unordered_map<std::string, Family>& families() {
  static const auto* table = new std::unordered_map<std::string, Family>{
      {"aten::linear", Family::kLinear},
      {"aten::addmm", Family::kAddmm},
      {"aten::mm", Family::kMatmul},
      {"aten::matmul", Family::kMatmul},
      {"aten::add", Family::kAdd},
      {"aten::add_", Family::kAdd},
      {"aten::mul", Family::kMultiply},
      {"aten::mul_", Family::kMultiply},
      {"aten::conv1d", Family::kConvolution},
      {"aten::conv2d", Family::kConvolution},
      {"aten::conv3d", Family::kConvolution},
      {"aten::conv_transpose1d", Family::kConvolution},
      {"aten::conv_transpose2d", Family::kConvolution},
      {"aten::conv_transpose3d", Family::kConvolution},
      {"aten::embedding", Family::kEmbedding},
      {"aten::layer_norm", Family::kNormalization},
      {"aten::group_norm", Family::kNormalization},
      {"aten::batch_norm", Family::kNormalization},
      {"aten::instance_norm", Family::kNormalization},
  };
  return *table;
}

bool is_one(const c10::IValue& value) {
  return value.isScalar() && value.toScalar().toDouble() == 1.0;
}

}  // namespace

Contribution failure(std::string why_not) {
  Contribution result;
  result.why_not = std::move(why_not);
  return result;
}

at::Tensor widen(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16
             ? tensor.to(at::kFloat)
             : tensor;
}

at::Tensor row_norm_sq(const at::Tensor& rows) { return row_products(rows, rows); }

Contribution from_gradients(const at::Tensor& gradients, bool materialise) {
  Contribution result;
  result.norm_sq = row_norm_sq(gradients);
  if (materialise) result.per_example = gradients;
  return result;
}

at::Tensor by_example(const at::Tensor& tensor, int64_t feature_dims, const Batch& batch) {
  const int64_t leading = tensor.dim() - feature_dims;
  if (leading < 1 || batch.size < 1) return {};
  std::vector<int64_t> features(tensor.sizes().end() - feature_dims, tensor.sizes().end());
  std::vector<int64_t> shape;
  at::Tensor ordered;
  if (batch.rearranged) {
    int64_t candidates = 0;
    for (int64_t i = 0; i < leading; ++i) candidates += tensor.size(i) == batch.size ? 1 : 0;
    if (candidates != 1) return {};
  }
  if (batch.dim < leading && tensor.size(batch.dim) == batch.size &&
      (leading > 1 || batch.dim == 0)) {
    ordered = batch.dim == 0 ? tensor : tensor.movedim(batch.dim, 0);
  } else if (leading == 1 && tensor.size(0) % batch.size == 0) {
    // Flattened: examples vary slowest if they are the first dimension, fastest if they are the
    // second.
    const int64_t positions = tensor.size(0) / batch.size;
    shape = batch.dim == 0 ? std::vector<int64_t>{batch.size, positions}
                           : std::vector<int64_t>{positions, batch.size};
    shape.insert(shape.end(), features.begin(), features.end());
    ordered = tensor.reshape(shape);
    if (batch.dim != 0) ordered = ordered.transpose(0, 1);
  } else {
    return {};
  }
  shape = {batch.size, -1};
  shape.insert(shape.end(), features.begin(), features.end());
  return ordered.reshape(shape);
}

bool recognised(const Use& use, std::string* why_not) {
  const auto found = families().find(use.name);
  if (found == families().end()) {
    *why_not = fmt::format("{} is not an operator whose per-example gradients are known", use.name);
    return false;
  }
  const auto& arguments = use.arguments;
  const size_t position = use.position;
  bool ok = false;
  switch (found->second) {
    case Family::kLinear:
      ok = position == 1 || position == 2;
      break;
    case Family::kAddmm:
      ok = (position == 0 || position == 2) && arguments.size() >= 5 && is_one(arguments[3]) &&
           is_one(arguments[4]);
      break;
    case Family::kMatmul:
      ok = position == 1 && use.argument.dim() == 2;
      break;
    case Family::kAdd:
      ok = (position == 1 || (position == 0 && use.name == "aten::add")) && arguments.size() >= 3 &&
           is_one(arguments[2]) && arguments[1 - position].isTensor();
      break;
    case Family::kMultiply:
      ok = (position == 1 || (position == 0 && use.name == "aten::mul")) && arguments.size() >= 2 &&
           arguments[1 - position].isTensor();
      break;
    case Family::kConvolution:
      ok = position == 1 || position == 2;
      break;
    case Family::kEmbedding:
      ok = position == 0 && arguments.size() >= 5 && !arguments[3].toBool() &&
           !arguments[4].toBool();
      break;
    case Family::kNormalization: {
      const size_t weight =
          use.name == "aten::layer_norm" || use.name == "aten::group_norm" ? 2 : 1;
      ok = position == weight || position == weight + 1;
      break;
    }
  }
  if (!ok)
    *why_not =
        fmt::format("its use as argument {} of {} is not one that is known", position, use.name);
  return ok;
}

size_t operand(const Use& use) {
  switch (families().at(use.name)) {
    case Family::kAddmm:
    case Family::kEmbedding:
      return 1;
    case Family::kAdd:
    case Family::kMultiply:
      return 1 - use.position;
    default:
      return 0;
  }
}

Contribution contribution(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                          bool materialise) {
  const auto& arguments = use.arguments;
  const auto tensor = [&](size_t i) { return arguments[i].toTensor(); };
  switch (families().at(use.name)) {
    case Family::kLinear:
      if (use.position == 2)
        return broadcast(use.argument, {}, output_gradient, batch, materialise);
      return linear(tensor(0), output_gradient, false, batch, materialise);
    case Family::kAddmm:
      if (use.position == 0)
        return broadcast(use.argument, {}, output_gradient, batch, materialise);
      return linear(tensor(1), output_gradient, true, batch, materialise);
    case Family::kMatmul:
      return linear(tensor(0), output_gradient, true, batch, materialise);
    case Family::kAdd:
      return broadcast(use.argument, {}, output_gradient, batch, materialise);
    case Family::kMultiply:
      return broadcast(use.argument, tensor(1 - use.position), output_gradient, batch, materialise);
    case Family::kConvolution:
      return convolution(use, output_gradient, batch, materialise);
    case Family::kEmbedding:
      return embedding(use, output_gradient, batch, materialise);
    case Family::kNormalization:
      return normalization(use, output_gradient, batch, materialise);
  }
  return failure("unknown operator");
}

}  // namespace tycho::per_example
