#include "per_example.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <unordered_map>

#include "operator_arguments.h"
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
  kNormalization,
  kSlope,
  kBilinear,
  kBag
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
      {"aten::prelu", Family::kSlope},
      {"aten::bilinear", Family::kBilinear},
      {"aten::embedding_bag", Family::kBag},
  };
  return *table;
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

Contribution from_gradients(const at::Tensor& gradients, const Wanted& wanted) {
  Contribution result;
  result.norm_sq = row_norm_sq(gradients);
  if (wanted.materialise) result.per_example = gradients;
  if (wanted.projection != nullptr) {
    result.projected = project(gradients.sum(0), *wanted.projection);
  }
  return result;
}

Projection make_projection(at::IntArrayRef sizes, const at::Tensor& like, uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const int64_t first = sizes.empty() ? 1 : sizes[0];
  int64_t rest = 1;
  for (size_t i = 1; i < sizes.size(); ++i) rest *= sizes[i];
  const auto type = like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto draw = [&](int64_t size) {
    return at::randn({size}, generator, at::TensorOptions().dtype(type)).to(like.device());
  };
  Projection result;
  result.left = draw(first);
  result.right = sizes.size() > 1 ? draw(rest) : at::ones({1}, like.options().dtype(type));
  return result;
}

at::Tensor project(const at::Tensor& gradient, const Projection& projection) {
  const at::Tensor wide = widen(gradient);
  const at::Tensor matrix = wide.reshape({projection.left.size(0), projection.right.size(0)});
  const at::Tensor right = at::mv(matrix, projection.right.to(matrix.scalar_type()));
  return (right * projection.left.to(right.scalar_type())).sum(at::kDouble);
}

at::Tensor group_rows(const at::Tensor& rows, const Batch& batch) {
  std::vector<int64_t> shape = rows.sizes().vec();
  if (!batch.rows) {
    if (rows.size(0) != batch.size) return {};
    return rows.unsqueeze(1);
  }
  const rows::Layout& layout = *batch.rows;
  if (!layout.has_rows() || layout.examples != batch.size) return {};
  if (!layout.labels.defined()) {
    if (rows.size(0) != layout.outer * batch.size * layout.inner) return {};
    if (layout.outer == 1 && layout.inner == 1) return rows.unsqueeze(1);
    shape[0] = layout.inner;
    shape.insert(shape.begin(), {layout.outer, batch.size});
    const at::Tensor apart = rows.reshape(shape).transpose(0, 1);
    shape.erase(shape.begin(), shape.begin() + 3);
    shape.insert(shape.begin(), {batch.size, layout.outer * layout.inner});
    return apart.reshape(shape);
  }
  if (layout.labels.numel() != rows.size(0) || layout.labels.lt(0).any().item<bool>()) return {};
  // Examples with fewer rows than the longest are filled up with zeros.
  const at::Tensor counts = at::bincount(layout.labels, {}, batch.size);
  const int64_t longest = counts.max().item<int64_t>();
  const at::Tensor order = std::get<1>(layout.labels.sort(/*stable=*/true, 0, false));
  const at::Tensor sorted = layout.labels.index_select(0, order);
  const at::Tensor starts = counts.cumsum(0) - counts;
  const at::Tensor place = at::arange(sorted.numel(), at::kLong) - starts.index_select(0, sorted);
  const at::Tensor slot = (sorted * longest + place).to(rows.device());
  shape.erase(shape.begin());
  shape.insert(shape.begin(), batch.size * longest);
  at::Tensor result = at::zeros(shape, rows.options());
  result.index_copy_(0, slot, rows.index_select(0, order.to(rows.device())));
  shape.erase(shape.begin());
  shape.insert(shape.begin(), {batch.size, longest});
  return result.reshape(shape);
}

at::Tensor by_example(const at::Tensor& tensor, int64_t feature_dims, const Batch& batch) {
  const int64_t leading = tensor.dim() - feature_dims;
  if (leading < 1 || batch.size < 1) return {};
  if (batch.rows) {
    if (batch.rows->dim >= leading) return {};
    const at::Tensor first = batch.rows->dim == 0 ? tensor : tensor.movedim(batch.rows->dim, 0);
    const at::Tensor grouped = group_rows(first, batch);
    if (!grouped.defined()) return {};
    std::vector<int64_t> sizes(tensor.sizes().end() - feature_dims, tensor.sizes().end());
    sizes.insert(sizes.begin(), {batch.size, -1});
    return grouped.reshape(sizes);
  }
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
    case Family::kSlope:
      ok = position == 1;
      break;
    case Family::kBilinear:
      ok = position == 2 || position == 3;
      break;
    case Family::kBag:
      // weight, indices, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights, ...
      ok = position == 0 && arguments.size() >= 7 && !arguments[3].toBool() &&
           arguments[4].toInt() < 2 && !arguments[5].toBool() &&
           !(arguments[6].isTensor() && arguments[6].toTensor().defined());
      break;
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
    case Family::kBag:
      return 1;
    case Family::kAdd:
    case Family::kMultiply:
      return 1 - use.position;
    default:
      return 0;
  }
}

int64_t output_features(const Use& use, const at::Tensor& output) {
  switch (families().at(use.name)) {
    case Family::kLinear:
    case Family::kAddmm:
    case Family::kMatmul:
    case Family::kEmbedding:
    case Family::kBilinear:
    case Family::kBag:
      return 1;
    case Family::kConvolution:
      return use.arguments[1].toTensor().dim() - 1;
    case Family::kNormalization:
      return use.name == "aten::layer_norm" ? use.argument.dim() : output.dim() - 1;
    case Family::kAdd:
    case Family::kMultiply: {
      // What is added to each row has a row's shape.
      const int64_t features = use.argument.dim();
      const bool rows = features <= output.dim() &&
                        use.argument.sizes() ==
                            output.sizes().slice(static_cast<size_t>(output.dim() - features));
      return rows ? features : 0;
    }
    default:
      return 0;
  }
}

bool flatten(Use* use, at::Tensor* output_gradient) {
  const Family family = families().at(use->name);
  const int64_t features = output_features(*use, *output_gradient);
  const auto rows = [](const c10::IValue& value, int64_t last) -> c10::IValue {
    const at::Tensor tensor = value.toTensor();
    std::vector<int64_t> sizes(tensor.sizes().end() - last, tensor.sizes().end());
    sizes.insert(sizes.begin(), -1);
    return tensor.reshape(sizes);
  };
  switch (family) {
    case Family::kLinear:
    case Family::kMatmul:
      use->arguments[0] = rows(use->arguments[0], 1);
      break;
    case Family::kAddmm:
      use->arguments[1] = rows(use->arguments[1], 1);
      break;
    case Family::kEmbedding:
      use->arguments[1] = rows(use->arguments[1], 0);
      break;
    case Family::kNormalization:
      if (use->name != "aten::layer_norm") return false;
      use->arguments[0] = rows(use->arguments[0], features);
      break;
    case Family::kAdd:
      if (features == 0) return false;
      break;
    case Family::kMultiply: {
      c10::IValue& other = use->arguments[1 - use->position];
      if (features == 0 || other.toTensor().sizes() != output_gradient->sizes()) return false;
      other = rows(other, features);
      break;
    }
    default:
      return false;
  }
  *output_gradient = rows(*output_gradient, features).toTensor();
  return true;
}

bool has_factors(const Use& use) {
  switch (families().at(use.name)) {
    case Family::kLinear:
      return use.position == 1;
    case Family::kAddmm:
    case Family::kBilinear:
      return use.position == 2;
    case Family::kMatmul:
      return true;
    default:
      return false;
  }
}

Contribution contribution(const Use& use, const at::Tensor& output_gradient, const Batch& batch,
                          const Wanted& wanted) {
  const auto& arguments = use.arguments;
  const auto tensor = [&](size_t i) { return arguments[i].toTensor(); };
  switch (families().at(use.name)) {
    case Family::kLinear:
      if (use.position == 2) return broadcast(use.argument, {}, output_gradient, batch, wanted);
      return linear(tensor(0), output_gradient, false, batch, wanted);
    case Family::kAddmm:
      if (use.position == 0) return broadcast(use.argument, {}, output_gradient, batch, wanted);
      return linear(tensor(1), output_gradient, true, batch, wanted);
    case Family::kMatmul:
      return linear(tensor(0), output_gradient, true, batch, wanted);
    case Family::kAdd:
      return broadcast(use.argument, {}, output_gradient, batch, wanted);
    case Family::kMultiply:
      return broadcast(use.argument, tensor(1 - use.position), output_gradient, batch, wanted);
    case Family::kConvolution:
      return convolution(use, output_gradient, batch, wanted);
    case Family::kEmbedding:
      return embedding(use, output_gradient, batch, wanted);
    case Family::kNormalization:
      return normalization(use, output_gradient, batch, wanted);
    case Family::kSlope:
      return slope(use, output_gradient, batch, wanted);
    case Family::kBilinear:
      if (use.position == 3) return broadcast(use.argument, {}, output_gradient, batch, wanted);
      return bilinear(tensor(0), tensor(1), output_gradient, batch, wanted);
    case Family::kBag:
      return embedding_bag(use, output_gradient, batch, wanted);
  }
  return failure("unknown operator");
}

}  // namespace tycho::per_example
