#include "rows/rules.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "rows/call_reader.h"

namespace tycho::rows {
namespace {

// Each element of the output comes from the elements at the same place of the arguments.
Layout elementwise(const CallReader& call, const at::Tensor& out) { return call.joined(out); }

// Also linear in what holds sums over examples.
Layout additive(const CallReader& call, const at::Tensor& out) {
  return call.joined(out, /*linear=*/true);
}

Layout multiplied(const CallReader& call, const at::Tensor& out) {
  return call.joined(out, /*linear=*/call.deciding().size() == 1);
}

Layout divided(const CallReader& call, const at::Tensor& out) {
  const auto deciding = call.deciding();
  return call.joined(out, /*linear=*/deciding.size() == 1 && deciding[0]->position == 0);
}

Layout constant(const CallReader& call, const at::Tensor&) { return none(call.examples()); }

// Shapes.

Layout regroup(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  return in == nullptr ? none(call.examples()) : reshaped(in->layout, in->sizes, out.sizes());
}

Layout expand(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  return in == nullptr ? none(call.examples()) : broadcast(in->layout, in->sizes, out.sizes());
}

Layout permute(const CallReader& call, const at::Tensor&) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  const auto dims = static_cast<int64_t>(in->sizes.size());
  std::vector<int64_t> order(static_cast<size_t>(dims));
  for (int64_t i = 0; i < dims; ++i) order[static_cast<size_t>(i)] = i;
  const std::string_view name = call.name();
  if (name == "permute") {
    order = call.ints(1);
    for (int64_t& dim : order) dim = dim < 0 ? dim + dims : dim;
  } else if (name == "t" || name == "numpy_T") {
    std::reverse(order.begin(), order.end());
  } else if (name == "transpose" || name == "swapaxes" || name == "swapdims") {
    std::swap(order[static_cast<size_t>(call.dim(1, dims))],
              order[static_cast<size_t>(call.dim(2, dims))]);
  } else if (name == "mT") {
    std::swap(order[order.size() - 1], order[order.size() - 2]);
  } else {  // movedim of one dimension
    const auto from = call.dims_of(1, dims);
    const auto to = call.dims_of(2, dims);
    if (from.size() != 1 || to.size() != 1) return call.ended("moves several dimensions");
    order.erase(order.begin() + from[0]);
    order.insert(order.begin() + to[0], from[0]);
  }
  const auto found = std::find(order.begin(), order.end(), in->layout.dim);
  return in_dim(in->layout, found - order.begin());
}

// Reductions.

Layout reduce(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || in->layout.none() || in->layout.lost()) return call.unchanged(in);
  const bool linear = call.name() == "sum" || call.name() == "mean";
  if (in->layout.kind == Layout::Kind::kSum) {
    return linear ? in->layout : call.ended("mixes examples");
  }
  const auto dims = static_cast<int64_t>(in->sizes.size());
  std::vector<int64_t> along;
  bool keeps = false;
  // One integer is a data type where there are no other arguments behind it.
  const size_t position = call.name() == "norm" || call.name() == "linalg_vector_norm" ? 2 : 1;
  if (call.has(position) && (call.input(position).isIntList() ||
                             (call.input(position).isInt() && call.has(position + 1) && !linear))) {
    along = call.dims_of(position, dims);
    keeps = out.dim() == dims;
  }
  if (along.empty()) {
    for (int64_t i = 0; i < dims; ++i) along.push_back(i);
  }
  if (std::find(along.begin(), along.end(), in->layout.dim) == along.end()) {
    if (keeps) return in->layout;
    const auto before = std::count_if(along.begin(), along.end(),
                                      [&](int64_t dim) { return dim < in->layout.dim; });
    return in_dim(in->layout, in->layout.dim - before);
  }
  if (!linear) return call.ended("mixes examples");
  // What is left might as well be the examples, and this a sum over something else.
  for (const int64_t size : out.sizes()) {
    if (size == call.examples() && size > 1) {
      return call.ended("leaves a dimension that is as long as the batch");
    }
  }
  return sum(call.examples());
}

// Numbers along one dimension depend on each other: it must not be that of the examples.
Layout along(const CallReader& call, const at::Tensor&) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.nonlinear(in);
  const auto dims = static_cast<int64_t>(in->sizes.size());
  const bool scores = call.name() == "glu" || call.name() == "normalize";
  const auto where = call.has(1) && (call.input(1).isInt() || call.input(1).isIntList())
                         ? call.dims_of(1, dims)
                         : std::vector<int64_t>{scores ? dims - 1 : 0};
  if (std::find(where.begin(), where.end(), in->layout.dim) != where.end()) {
    return call.ended("mixes examples");
  }
  return in->layout;
}

Layout sort(const CallReader& call, const at::Tensor&) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.nonlinear(in);
  const auto dims = static_cast<int64_t>(in->sizes.size());
  const size_t position = call.name() == "topk" ? 2 : 1;
  const int64_t dim =
      call.has(position) && call.input(position).isInt() ? call.dim(position, dims) : dims - 1;
  return dim == in->layout.dim ? call.ended("sorts examples") : in->layout;
}

// Layers and losses are in layer_rules.cpp, what takes and puts rows in moving_rules.cpp.

using Rule = Layout (*)(const CallReader&, const at::Tensor&);

const std::unordered_map<std::string_view, Rule>& rules() {
  static const auto* table = [] {
    auto* all = new std::unordered_map<std::string_view, Rule>(layer_rules());
    all->merge(moving_rules());
    for (const char* name : {"relu",
                             "relu6",
                             "leaky_relu",
                             "gelu",
                             "silu",
                             "sigmoid",
                             "tanh",
                             "exp",
                             "exp2",
                             "log",
                             "log1p",
                             "log2",
                             "log10",
                             "expm1",
                             "sqrt",
                             "rsqrt",
                             "abs",
                             "sin",
                             "cos",
                             "tan",
                             "sinh",
                             "cosh",
                             "asin",
                             "acos",
                             "atan",
                             "square",
                             "pow",
                             "clamp",
                             "clamp_min",
                             "clamp_max",
                             "clip",
                             "hardtanh",
                             "hardsigmoid",
                             "hardswish",
                             "elu",
                             "selu",
                             "celu",
                             "softplus",
                             "softshrink",
                             "hardshrink",
                             "mish",
                             "threshold",
                             "log_sigmoid",
                             "erf",
                             "erfc",
                             "reciprocal",
                             "sign",
                             "floor",
                             "ceil",
                             "round",
                             "trunc",
                             "frac",
                             "maximum",
                             "minimum",
                             "fmax",
                             "fmin",
                             "fmod",
                             "remainder",
                             "lerp",
                             "addcmul",
                             "addcdiv",
                             "atan2",
                             "dropout",
                             "feature_dropout",
                             "alpha_dropout",
                             "feature_alpha_dropout",
                             "native_dropout",
                             "where",
                             "masked_fill",
                             "eq",
                             "ne",
                             "lt",
                             "gt",
                             "le",
                             "ge",
                             "logical_and",
                             "logical_or",
                             "logical_not",
                             "logical_xor",
                             "bitwise_and",
                             "bitwise_or",
                             "bitwise_not",
                             "isnan",
                             "isinf",
                             "isfinite",
                             "nan_to_num",
                             "xlogy",
                             "logaddexp",
                             "logit",
                             "rrelu",
                             "heaviside",
                             "lgamma",
                             "digamma",
                             "special_expit",
                             "sinc",
                             "prelu",
                             "bernoulli",
                             "rand_like",
                             "randn_like",
                             "randint_like",
                             "normal",
                             "absolute",
                             "floor_divide",
                             "hypot",
                             "gt",
                             "greater",
                             "less",
                             "__and__",
                             "__or__",
                             "__xor__",
                             "special_erf",
                             "erfinv",
                             "polygamma",
                             "fill"}) {
      all->emplace(name, &elementwise);
    }
    for (const char* name :
         {"add",      "sub",     "subtract",       "neg",   "negative",   "rsub",        "to",
          "_to_copy", "type_as", "contiguous",     "clone", "detach",     "alias",       "copy",
          "cpu",      "cuda",    "requires_grad_", "lift",  "lift_fresh", "resolve_conj"}) {
      all->emplace(name, &additive);
    }
    for (const char* name : {"mul", "multiply"}) all->emplace(name, &multiplied);
    for (const char* name : {"div", "divide", "true_divide"}) all->emplace(name, &divided);
    for (const char* name : {"zeros_like", "ones_like", "full_like", "zero", "new_zeros",
                             "new_ones", "new_full", "size", "arange", "_shape_as_tensor"}) {
      all->emplace(name, &constant);
    }
    for (const char* name : {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
                             "_unsafe_view", "view_as", "reshape_as", "ravel", "_reshape_alias"}) {
      all->emplace(name, &regroup);
    }
    for (const char* name : {"expand", "expand_as", "broadcast_to"}) all->emplace(name, &expand);
    for (const char* name : {"permute", "t", "numpy_T", "transpose", "swapaxes", "swapdims", "mT",
                             "movedim", "moveaxis"}) {
      all->emplace(name, &permute);
    }
    for (const char* name :
         {"sum", "mean", "logsumexp", "amax", "amin", "prod", "norm", "std", "var", "argmax",
          "argmin", "any", "all", "linalg_vector_norm", "count_nonzero", "nansum"}) {
      all->emplace(name, &reduce);
    }
    for (const char* name :
         {"softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp", "glu"}) {
      all->emplace(name, &along);
    }
    for (const char* name : {"sort", "topk", "argsort"}) all->emplace(name, &sort);
    return all;
  }();
  return *table;
}

// One dimension with a result and its place, the whole tensor, or elementwise with another tensor.
Layout extremum(const CallReader& call, const at::Tensor& out) {
  if (call.has(1) && call.input(1).isTensor()) return elementwise(call, out);
  return reduce(call, out);
}

}  // namespace

std::vector<Layout> apply(const Call& call) {
  const CallReader reader(call);
  const std::vector<at::Tensor>& outputs = *call.outputs;
  if (reader.deciding().empty()) {
    return std::vector<Layout>(outputs.size(), none(call.examples));
  }
  const std::string_view name = call.name;
  if (name == "chunk" || name == "split" || name == "split_with_sizes" || name == "unbind" ||
      name == "tensor_split" || name == "unsafe_split" || name == "unsafe_chunk") {
    return pieces(reader, outputs);
  }
  if (name == "broadcast_tensors") {
    std::vector<Layout> result;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Argument& from = call.tensors[i];
      result.push_back(broadcast(from.layout, from.sizes, outputs[i].sizes()));
    }
    return result;
  }
  if (name == "_pack_padded_sequence") return packed(reader, outputs);
  if (name == "_pad_packed_sequence") return unpacked(reader, outputs);
  if (name == "lstm" || name == "gru" || name == "rnn_tanh" || name == "rnn_relu") {
    return recurrent(reader, outputs);
  }
  Rule rule = nullptr;
  if (name == "max" || name == "min" || name == "median") {
    rule = &extremum;
  } else if (const auto found = rules().find(name); found != rules().end()) {
    rule = found->second;
  }
  std::vector<Layout> result;
  for (const at::Tensor& out : outputs) {
    if (rule == nullptr) {
      result.push_back(reader.ended("is not known to keep examples apart"));
    } else {
      result.push_back(rule(reader, out));
    }
  }
  return result;
}

bool makes_data(std::string_view name) {
  return name.find("empty") != std::string_view::npos ||
         name.find("rand") != std::string_view::npos ||
         name.find("normal") != std::string_view::npos ||
         name.find("bernoulli") != std::string_view::npos || name == "uniform" ||
         name == "exponential" || name == "from_file";
}

}  // namespace tycho::rows
