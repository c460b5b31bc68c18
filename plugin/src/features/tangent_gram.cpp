#include "features/tangent_gram.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "per_example/uses.h"

namespace tycho {
namespace {

using per_example::Batch;
using per_example::kMaxMaterialisedElements;
using per_example::Use;

// Products of all pairs of positions are made only up to this size.
constexpr int64_t kMaxPairs = int64_t{1} << 24;
constexpr int64_t kGramBlock = int64_t{1} << 22;

// Inputs and output gradients [n, positions, features] of a weight that multiplies from the right.
struct Factors {
  at::Tensor x, d;
};

std::optional<size_t> linear_operand(const Use& use) {
  if (use.name == "aten::linear" && use.position == 1) return 0;
  if (use.name == "aten::addmm" && use.position == 2) return 1;
  if ((use.name == "aten::mm" || use.name == "aten::matmul") && use.position == 1) return 0;
  return std::nullopt;
}

at::Tensor first_examples(const at::Tensor& tensor, int64_t feature_dims, const Batch& batch,
                          int64_t examples) {
  const at::Tensor rows = per_example::by_example(per_example::widen(tensor), feature_dims, batch);
  return rows.defined() ? rows.slice(0, 0, examples) : rows;
}

std::optional<Factors> factors_of(const GramUse& use, const Batch& batch, int64_t examples) {
  const auto operand = linear_operand(*use.use);
  if (!operand) return std::nullopt;
  Factors factors;
  factors.x = first_examples(use.use->arguments[*operand].toTensor(), 1, batch, examples);
  factors.d = first_examples(use.output_gradient, 1, batch, examples);
  if (!factors.x.defined() || !factors.d.defined() || factors.x.size(1) != factors.d.size(1)) {
    return std::nullopt;
  }
  return factors;
}

/// Sum over positions t, t' of (x_it . x_jt') (d_it . d_jt').
at::Tensor linear_gram(const at::Tensor& x, const at::Tensor& d) {
  const int64_t n = x.size(0);
  const int64_t positions = x.size(1);
  const int64_t in = x.size(2);
  const int64_t out = d.size(2);
  if (positions == 0) return at::zeros({n, n}, x.options().dtype(at::kDouble));
  const double pairs = static_cast<double>(n * positions) * static_cast<double>(n * positions);
  const double by_pairs = pairs * static_cast<double>(in + out);
  const double by_gradients =
      static_cast<double>(n * in) * static_cast<double>(out) * static_cast<double>(positions + n);
  if (positions == 1 || (by_pairs < by_gradients && pairs <= static_cast<double>(kMaxPairs))) {
    const at::Tensor xs = x.reshape({n * positions, in});
    const at::Tensor ds = d.reshape({n * positions, out});
    const at::Tensor products = at::mm(xs, xs.t()).mul_(at::mm(ds, ds.t()));
    return products.reshape({n, positions, n, positions}).sum({1, 3}, false, at::kDouble);
  }
  // The gradients themselves, for so many outputs at a time as fit.
  at::Tensor total = at::zeros({n, n}, x.options().dtype(at::kDouble));
  const int64_t step = std::max<int64_t>(1, kGramBlock / std::max<int64_t>(1, n * in));
  for (int64_t begin = 0; begin < out; begin += step) {
    const at::Tensor part = d.narrow(2, begin, std::min(step, out - begin));
    total.add_(row_gram(at::bmm(part.transpose(1, 2), x)));
  }
  return total;
}

/// Sum over positions with the same index of d_it . d_jt'.
at::Tensor embedding_gram(const at::Tensor& indices, const at::Tensor& d) {
  const int64_t n = d.size(0);
  const int64_t positions = d.size(1);
  const at::Tensor flat = indices.reshape({-1});
  const at::Tensor ds = d.reshape({n * positions, d.size(2)});
  at::Tensor total = at::zeros({n, n}, d.options().dtype(at::kDouble));
  // Some examples at a time, against all.
  const int64_t step =
      std::max<int64_t>(1, kGramBlock / std::max<int64_t>(1, n * positions * positions));
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t count = std::min(step, n - begin);
    const at::Tensor same =
        flat.narrow(0, begin * positions, count * positions).unsqueeze(1).eq(flat.unsqueeze(0));
    const at::Tensor products =
        at::mm(ds.narrow(0, begin * positions, count * positions), ds.t()).mul_(same);
    total.narrow(0, begin, count)
        .copy_(products.reshape({count, positions, n, positions}).sum({1, 3}, false, at::kDouble));
  }
  return total;
}

/// The use restricted to the first examples, where they are a dimension of their own in what it
/// takes and what it gives.
Use narrowed(const Use& use, const Batch& batch, int64_t examples, at::Tensor* d, Batch* rest) {
  *rest = batch;
  if (examples == batch.size || use.name == "aten::batch_norm") return use;
  const size_t operand = per_example::operand(use);
  const at::Tensor x = use.arguments[operand].toTensor();
  const auto fits = [&](const at::Tensor& tensor) {
    return tensor.dim() > batch.dim && tensor.size(batch.dim) == batch.size;
  };
  if (!fits(x) || !fits(*d)) return use;
  Use result = use;
  result.arguments[operand] = x.narrow(batch.dim, 0, examples);
  *d = d->narrow(batch.dim, 0, examples);
  rest->size = examples;
  return result;
}

/// Gradients [n, shape of the argument].
at::Tensor gradients_of(const GramUse& use, const Batch& batch, int64_t examples,
                        std::string* why_not) {
  at::Tensor d = use.output_gradient;
  Batch rest;
  const Use part = narrowed(*use.use, batch, examples, &d, &rest);
  if (rest.size * part.argument.numel() > kMaxMaterialisedElements) {
    *why_not = fmt::format("the gradients of {} examples would need {} MiB", rest.size,
                           rest.size * part.argument.numel() * 4 >> 20);
    return {};
  }
  const per_example::Contribution found =
      per_example::contribution(part, d, rest, {/*materialise=*/true});
  if (!found.why_not.empty()) {
    *why_not = found.why_not;
    return {};
  }
  return found.per_example.slice(0, 0, examples);
}

/// Rows of the embedding are looked up once each, so that its gradients are those of the result.
at::Tensor positions_gram(const GramUse& use, const Batch& batch, int64_t examples,
                          std::string* why_not) {
  const at::Tensor indices = use.use->arguments[1].toTensor().reshape({-1});
  const at::Tensor sorted = std::get<0>(indices.sort());
  const bool distinct =
      indices.numel() < 2 || sorted.slice(0, 1).ne(sorted.slice(0, 0, -1)).all().item<bool>();
  if (!distinct || use.use->arguments[2].toInt() >= 0) {
    *why_not = "its rows are not looked up once each";
    return {};
  }
  const GramUse added{use.sum, use.output_gradient};
  const at::Tensor gradients = gradients_of(added, batch, examples, why_not);
  return gradients.defined() ? row_gram(gradients) : gradients;
}

bool same_view(const at::Tensor& left, const at::Tensor& right) {
  return left.sizes() == right.sizes() && left.strides() == right.strides() &&
         left.storage_offset() == right.storage_offset();
}

}  // namespace

at::Tensor row_gram(const at::Tensor& rows) {
  const at::Tensor flat = per_example::widen(rows).reshape({rows.size(0), -1});
  return at::mm(flat, flat.t()).to(at::kDouble);
}

at::Tensor tangent_gram(const std::vector<GramUse>& uses, const at::Tensor& parameter,
                        const Batch& batch, int64_t examples, std::string* why_not) {
  for (const GramUse& use : uses) {
    if (!per_example::recognised(*use.use, why_not)) return {};
    const size_t operand = per_example::operand(*use.use);
    if (operand >= use.use->arguments.size() || !use.use->arguments[operand].isTensor()) {
      *why_not = fmt::format("{} takes no tensor beside it", use.use->name);
      return {};
    }
  }
  if (uses.size() == 1 && uses[0].sum != nullptr) {
    return positions_gram(uses[0], batch, examples, why_not);
  }
  const bool alike = std::all_of(uses.begin(), uses.end(), [&](const GramUse& use) {
    return same_view(use.use->argument, uses[0].use->argument);
  });
  if (alike) {
    std::vector<at::Tensor> xs, ds;
    for (const GramUse& use : uses) {
      const auto factors = factors_of(use, batch, examples);
      if (!factors) break;
      xs.push_back(factors->x);
      ds.push_back(factors->d);
    }
    if (xs.size() == uses.size()) return linear_gram(at::cat(xs, 1), at::cat(ds, 1));
  }
  if (uses.size() == 1 && uses[0].use->name == "aten::embedding") {
    const Use& use = *uses[0].use;
    const at::Tensor indices = first_examples(use.arguments[1].toTensor(), 0, batch, examples);
    at::Tensor d = first_examples(uses[0].output_gradient, 1, batch, examples);
    if (!indices.defined() || !d.defined() || d.size(1) != indices.size(1)) {
      *why_not = "the examples cannot be found in its input";
      return {};
    }
    const int64_t padding = use.arguments[2].toInt();
    if (padding >= 0) d = d.masked_fill(indices.eq(padding).unsqueeze(2), 0);
    return embedding_gram(indices, d);
  }
  if (uses.size() == 1) {
    const at::Tensor gradients = gradients_of(uses[0], batch, examples, why_not);
    return gradients.defined() ? row_gram(gradients) : gradients;
  }
  // Uses of parts, or by different operators: their gradients add up in the parameter's storage.
  if (!parameter.is_non_overlapping_and_dense() ||
      examples * parameter.numel() > kMaxMaterialisedElements) {
    *why_not = "it is used several times, and its gradients cannot be kept";
    return {};
  }
  at::Tensor sum;
  for (const GramUse& use : uses) {
    const at::Tensor gradients = gradients_of(use, batch, examples, why_not);
    if (!gradients.defined()) return {};
    if (!sum.defined()) sum = at::zeros({examples, parameter.numel()}, gradients.options());
    const at::Tensor& argument = use.use->argument;
    std::vector<int64_t> sizes = argument.sizes().vec();
    std::vector<int64_t> strides = argument.strides().vec();
    sizes.insert(sizes.begin(), examples);
    strides.insert(strides.begin(), parameter.numel());
    sum.as_strided(sizes, strides, argument.storage_offset() - parameter.storage_offset())
        .add_(gradients);
  }
  return row_gram(sum);
}

}  // namespace tycho
