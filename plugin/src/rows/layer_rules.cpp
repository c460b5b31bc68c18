#include <ATen/ATen.h>

#include <algorithm>

#include "rows/call_reader.h"

namespace tycho::rows {
namespace {

// The first argument alone decides, and the examples are none of its last `trailing` dimensions.
Layout of_first(const CallReader& call, int64_t trailing) {
  const Argument* in = call.first();
  for (const Argument* argument : call.deciding()) {
    if (argument != in && argument->differentiable) {
      return call.ended("takes weights that depend on the examples");
    }
  }
  if (in == nullptr || !in->layout.has_rows()) return call.nonlinear(in);
  if (in->layout.dim >= static_cast<int64_t>(in->sizes.size()) - trailing) {
    return call.ended("mixes examples");
  }
  return in->layout;
}

Layout linear(const CallReader& call, const at::Tensor&) { return of_first(call, 1); }

Layout matrices(const CallReader& call, const at::Tensor&) { return of_first(call, 2); }

// One dimension more at the end.
Layout appended(const CallReader& call, const at::Tensor&) { return of_first(call, 0); }

int64_t spatial_dims(std::string_view name) {
  for (const char digit : {'1', '2', '3'}) {
    if (name.find(std::string{digit, 'd'}) != std::string_view::npos) return digit - '0';
  }
  return 2;
}

// [N, C, space...]; what has no N has no examples.
Layout convolution(const CallReader& call, const at::Tensor& out) {
  const Argument* weight = call.at(1);
  return of_first(call,
                  weight == nullptr ? out.dim() : static_cast<int64_t>(weight->sizes.size()) - 1);
}

// Channels apart too.
Layout spatial(const CallReader& call, const at::Tensor&) {
  return of_first(call, spatial_dims(call.name()));
}

Layout padding(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  if (out.size(in->layout.dim) != in->sizes[static_cast<size_t>(in->layout.dim)]) {
    return call.ended("pads the dimension of the examples");
  }
  return in->layout;
}

Layout over_channels(const CallReader& call, const at::Tensor& out) {
  return of_first(call, out.dim() - 1);
}

Layout layer_norm(const CallReader& call, const at::Tensor&) {
  return of_first(call, static_cast<int64_t>(call.ints(1).size()));
}

// Whether the table that is looked up holds something of the examples.
bool varies(const CallReader& call) {
  const Argument* table = call.at(0);
  return table != nullptr && table->differentiable && call.decides(*table);
}

Layout embedding(const CallReader& call, const at::Tensor&) {
  if (varies(call)) return call.ended("looks up a table that depends on the examples");
  return call.unchanged(call.at(1));
}

// [bags, features]: a bag is its indices' example.
Layout embedding_bag(const CallReader& call, const at::Tensor& out) {
  const Argument* indices = call.at(1);
  const Argument* offsets = call.at(2);
  if (varies(call)) return call.ended("looks up a table that depends on the examples");
  if (indices == nullptr || !indices->layout.has_rows()) return call.unchanged(indices);
  if (out.dim() != 2 || offsets == nullptr || indices->sizes.size() != 1) {
    return none(call.examples());
  }
  const at::Tensor all = labels(indices->layout);
  const at::Tensor start = offsets->tensor.to(at::kCPU, at::kLong).contiguous();
  at::Tensor bags = at::full({out.size(0)}, kNoExample, at::kLong);
  for (int64_t bag = 0; bag < out.size(0); ++bag) {
    const int64_t begin = start.data_ptr<int64_t>()[bag];
    const int64_t end = bag + 1 < start.numel() ? start.data_ptr<int64_t>()[bag + 1] : all.numel();
    if (begin >= end) continue;
    const at::Tensor of_bag = all.slice(0, begin, end);
    bags[bag] =
        of_bag.eq(of_bag[0]).all().item<bool>() ? of_bag[0].item<int64_t>() : kSeveralExamples;
  }
  return labelled(0, call.examples(), bags);
}

// [..., rows, k] times [..., k, columns].
Layout matmul(const CallReader& call, const at::Tensor& out) {
  const Argument* left = nullptr;
  const Argument* right = nullptr;
  std::vector<const Argument*> added;
  const size_t shift = call.name() == "addmm" || call.name() == "baddbmm" ? 1 : 0;
  for (const Argument& argument : call.tensors()) {
    if (argument.position == shift) left = &argument;
    if (argument.position == shift + 1) right = &argument;
    if (argument.position < shift && call.decides(argument)) added.push_back(&argument);
  }
  if (left == nullptr || right == nullptr) return call.ended("takes no two matrices");
  const auto left_dims = static_cast<int64_t>(left->sizes.size());
  const auto right_dims = static_cast<int64_t>(right->sizes.size());
  std::vector<Layout> layouts;
  for (const Argument* argument : {left, right}) {
    if (!call.decides(*argument)) continue;
    const Layout& layout = argument->layout;
    if (!layout.has_rows()) return call.nonlinear(argument);
    const int64_t dims = argument == left ? left_dims : right_dims;
    const int64_t from_back = dims - layout.dim;  // 1: the last
    const bool vector = dims == 1;
    const int64_t contracted = argument == left || vector ? 1 : 2;
    if (from_back == contracted) return call.ended("sums products over examples");
    // A vector on the other side leaves no dimension of its own.
    const bool left_kept = left_dims > 1;
    const bool right_kept = right_dims > 1;
    int64_t out_from_back = from_back;
    if (from_back == 1) out_from_back = 1;                         // columns of the right matrix
    if (from_back == 2) out_from_back = 1 + (right_kept ? 1 : 0);  // rows of the left matrix
    if (from_back > 2) {
      out_from_back = from_back - 2 + (left_kept ? 1 : 0) + (right_kept ? 1 : 0);
    }
    const int64_t dim = out.dim() - out_from_back;
    if (dim < 0 || dim >= out.dim()) return call.ended("has another result than expected");
    Layout moved = in_dim(layout, dim);
    const int64_t size = argument->sizes[static_cast<size_t>(layout.dim)];
    if (size != out.size(dim)) {
      if (size != 1) return call.ended("has another result than expected");
      moved = labelled(dim, call.examples(), labels(layout).expand({out.size(dim)}));
    }
    layouts.push_back(moved);
  }
  for (const Argument* argument : added) {
    if (!argument->layout.has_rows()) return call.nonlinear(argument);
    layouts.push_back(broadcast(argument->layout, argument->sizes, out.sizes()));
  }
  return call.agreed(layouts);
}

// Two inputs [..., features] beside each other, and weights: also the cells of recurrent networks
// with their states.
Layout two_inputs(const CallReader& call, const at::Tensor&) {
  std::vector<Layout> layouts;
  for (const Argument* argument : call.deciding()) {
    if (argument->position > 1 && argument->differentiable) {
      return call.ended("takes weights that depend on the examples");
    }
    if (argument->position > 1) continue;
    if (!argument->layout.has_rows()) return call.nonlinear(argument);
    if (argument->layout.dim + 1 == static_cast<int64_t>(argument->sizes.size())) {
      return call.ended("mixes examples");
    }
    layouts.push_back(argument->layout);
  }
  return call.agreed(layouts);
}

// Query, key and value [..., positions, features]; a mask is a coefficient, or must agree.
Layout attention(const CallReader& call, const at::Tensor& out) {
  std::vector<Layout> layouts;
  for (const Argument* argument : call.deciding()) {
    if (!argument->layout.has_rows()) return call.nonlinear(argument);
    if (argument->layout.dim >= static_cast<int64_t>(argument->sizes.size()) - 2 ||
        static_cast<int64_t>(argument->sizes.size()) != out.dim()) {
      return call.ended("mixes examples");
    }
    layouts.push_back(argument->layout);
  }
  return call.agreed(layouts);
}

// Losses. `rows`: where the examples lie in what is not reduced.
Layout reduced(const CallReader& call, const Layout& rows, size_t reduction) {
  if (!rows.has_rows()) return rows;
  const bool reduces =
      !call.has(reduction) || !call.input(reduction).isInt() || call.input(reduction).toInt() != 0;
  return reduces ? sum(call.examples()) : rows;
}

// The shape of the broadcast arguments, of which a reduced loss shows nothing.
Layout elementwise_loss(const CallReader& call, const at::Tensor&) {
  std::vector<at::Tensor> shapes;
  for (const Argument& argument : call.tensors()) {
    shapes.push_back(at::empty({}, at::kByte).expand(argument.sizes));
  }
  const at::Tensor wide = at::broadcast_tensors(shapes)[0];
  const std::string_view name = call.name();
  size_t reduction = 2;
  if (name == "binary_cross_entropy" || name == "hinge_embedding_loss") reduction = 3;
  if (name == "binary_cross_entropy_with_logits" || name == "margin_ranking_loss") reduction = 4;
  if (name == "poisson_nll_loss") reduction = 5;
  return reduced(call, call.joined(wide), reduction);
}

// Scores [N, classes, ...] or [classes].
Layout class_loss(const CallReader& call, const at::Tensor&) {
  const Argument* scores = call.first();
  for (const Argument* argument : call.deciding()) {
    if (argument != scores &&
        !(argument->position == 1 && scores != nullptr && same(argument->layout, scores->layout))) {
      return call.ended("takes weights that depend on the examples");
    }
  }
  if (scores == nullptr || !scores->layout.has_rows()) return call.nonlinear(scores);
  const bool batched = scores->sizes.size() > 1;
  if (!batched || scores->layout.dim == 1) return call.ended("mixes examples");
  Layout rows = scores->layout;
  if (rows.dim > 1) --rows.dim;
  return reduced(call, rows, 3);
}

// log_probs [time, N, classes].
Layout ctc_loss(const CallReader& call, const at::Tensor&) {
  const Argument* scores = call.first();
  if (scores == nullptr || !scores->layout.has_rows()) return call.nonlinear(scores);
  if (scores->sizes.size() != 3 || scores->layout.dim != 1) return call.ended("mixes examples");
  return reduced(call, in_dim(scores->layout, 0), 5);
}

// Of vectors in the last dimension.
Layout pair_loss(const CallReader& call, const at::Tensor&) {
  std::vector<Layout> layouts;
  for (const Argument* argument : call.deciding()) {
    if (!argument->layout.has_rows()) return call.nonlinear(argument);
    if (argument->layout.dim + 1 == static_cast<int64_t>(argument->sizes.size())) {
      return call.ended("mixes examples");
    }
    layouts.push_back(argument->layout);
  }
  const size_t reduction = call.name() == "triplet_margin_loss" ? 7 : 4;
  return reduced(call, call.agreed(layouts), reduction);
}

Layout cosine_similarity(const CallReader& call, const at::Tensor& out) {
  std::vector<Layout> layouts;
  for (const Argument* argument : call.deciding()) {
    if (!argument->layout.has_rows()) return call.nonlinear(argument);
    const auto dims = static_cast<int64_t>(argument->sizes.size());
    const int64_t along = call.dim(2, dims);
    if (along == argument->layout.dim || dims != out.dim() + 1) return call.ended("mixes examples");
    layouts.push_back(
        in_dim(argument->layout, argument->layout.dim - (along < argument->layout.dim ? 1 : 0)));
  }
  return call.agreed(layouts);
}

// a, b, c -> the equation's letters say where the examples go.
Layout einsum(const CallReader& call, const at::Tensor&) {
  if (!call.has(0) || !call.input(0).isString()) return call.ended("has no equation");
  std::string equation = call.input(0).toStringRef();
  equation.erase(std::remove(equation.begin(), equation.end(), ' '), equation.end());
  const size_t arrow = equation.find("->");
  if (arrow == std::string::npos || equation.find('.') != std::string::npos) {
    return call.ended("has an equation without an output, or with dots");
  }
  const std::string output = equation.substr(arrow + 2);
  std::vector<std::string> operands(1);
  for (const char letter : equation.substr(0, arrow)) {
    if (letter == ',') {
      operands.emplace_back();
    } else {
      operands.back().push_back(letter);
    }
  }
  if (operands.size() != call.tensors().size()) return call.ended("has another number of operands");
  std::vector<Layout> layouts;
  for (size_t i = 0; i < operands.size(); ++i) {
    const Argument& argument = call.tensors()[i];
    if (!call.decides(argument)) continue;
    if (!argument.layout.has_rows()) return call.nonlinear(&argument);
    const char letter = operands[i][static_cast<size_t>(argument.layout.dim)];
    const size_t dim = output.find(letter);
    if (dim == std::string::npos) return call.ended("sums products over examples");
    if (std::count(operands[i].begin(), operands[i].end(), letter) != 1) {
      return call.ended("takes a diagonal over examples");
    }
    layouts.push_back(in_dim(argument.layout, static_cast<int64_t>(dim)));
  }
  return call.agreed(layouts);
}

}  // namespace

std::unordered_map<std::string_view, Layout (*)(const CallReader&, const at::Tensor&)>
layer_rules() {
  std::unordered_map<std::string_view, Layout (*)(const CallReader&, const at::Tensor&)> all;
  all.emplace("linear", &linear);
  for (const char* name : {"matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm"}) {
    all.emplace(name, &matmul);
  }
  for (const char* name : {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                           "conv_transpose3d", "convolution", "_convolution"}) {
    all.emplace(name, &convolution);
  }
  for (const char* name : {"batch_norm", "instance_norm", "group_norm"}) {
    all.emplace(name, &over_channels);
  }
  for (const char* name : {"max_pool1d",
                           "max_pool2d",
                           "max_pool3d",
                           "max_pool2d_with_indices",
                           "max_pool3d_with_indices",
                           "max_pool1d_with_indices",
                           "avg_pool1d",
                           "avg_pool2d",
                           "avg_pool3d",
                           "adaptive_avg_pool1d",
                           "adaptive_avg_pool2d",
                           "adaptive_avg_pool3d",
                           "adaptive_max_pool1d",
                           "adaptive_max_pool2d",
                           "adaptive_max_pool3d",
                           "upsample_nearest1d",
                           "upsample_nearest2d",
                           "upsample_nearest3d",
                           "upsample_linear1d",
                           "upsample_bilinear2d",
                           "upsample_bicubic2d",
                           "upsample_trilinear3d",
                           "reflection_pad1d",
                           "reflection_pad2d",
                           "reflection_pad3d",
                           "replication_pad1d",
                           "replication_pad2d",
                           "replication_pad3d"}) {
    all.emplace(name, &spatial);
  }
  for (const char* name : {"constant_pad_nd", "pad", "_pad_enum"}) all.emplace(name, &padding);
  for (const char* name : {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col",
                           "col2im", "grid_sampler"}) {
    all.emplace(name, &over_channels);
  }
  all.emplace("layer_norm", &layer_norm);
  all.emplace("embedding", &embedding);
  all.emplace("embedding_bag", &embedding_bag);
  all.emplace("scaled_dot_product_attention", &attention);
  for (const char* name : {"bilinear", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}) {
    all.emplace(name, &two_inputs);
  }
  for (const char* name : {"tril", "triu"}) all.emplace(name, &matrices);
  for (const char* name :
       {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
        "binary_cross_entropy_with_logits", "kl_div", "soft_margin_loss", "hinge_embedding_loss",
        "margin_ranking_loss", "poisson_nll_loss"}) {
    all.emplace(name, &elementwise_loss);
  }
  for (const char* name : {"cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d"}) {
    all.emplace(name, &class_loss);
  }
  all.emplace("ctc_loss", &ctc_loss);
  for (const char* name : {"cosine_embedding_loss", "triplet_margin_loss"}) {
    all.emplace(name, &pair_loss);
  }
  all.emplace("cosine_similarity", &cosine_similarity);
  all.emplace("einsum", &einsum);
  all.emplace("one_hot", &appended);
  return all;
}

// input, lengths, batch_first -> data, batch_sizes: time by time, the first batch_sizes[t] rows.
std::vector<Layout> packed(const CallReader& call, const std::vector<at::Tensor>& outputs) {
  std::vector<Layout> result(outputs.size(), none(call.examples()));
  const Argument* in = call.first();
  result[0] = call.nonlinear(in);
  if (in == nullptr || !in->layout.has_rows() || outputs.size() < 2) return result;
  if (in->layout.dim != (call.input(2).toBool() ? 0 : 1)) {
    result[0] = call.ended("packs another dimension than that of the examples");
    return result;
  }
  const at::Tensor all = labels(in->layout);
  const at::Tensor counts = outputs[1].to(at::kCPU, at::kLong);
  std::vector<at::Tensor> parts;
  for (int64_t t = 0; t < counts.numel(); ++t) {
    parts.push_back(all.slice(0, 0, counts[t].item<int64_t>()));
  }
  result[0] = labelled(0, call.examples(), at::cat(parts));
  return result;
}

// data, batch_sizes, batch_first, ... -> padded, lengths.
std::vector<Layout> unpacked(const CallReader& call, const std::vector<at::Tensor>& outputs) {
  std::vector<Layout> result(outputs.size(), none(call.examples()));
  const Argument* in = call.first();
  result[0] = call.nonlinear(in);
  if (in == nullptr || !in->layout.has_rows()) return result;
  const at::Tensor all = labels(in->layout);
  const at::Tensor counts = call.input(1).toTensor().to(at::kCPU, at::kLong);
  const at::Tensor order = all.slice(0, 0, counts[0].item<int64_t>());
  const bool ok = in->layout.dim == 0 && sequences_keep_order(all, counts);
  result[0] = ok ? labelled(call.input(2).toBool() ? 0 : 1, call.examples(), order)
                 : call.ended("puts rows of different examples beside each other");
  return result;
}

// input [T, N, F], [N, T, F] or packed, states [.., N, ..] -> the same of outputs and states.
std::vector<Layout> recurrent(const CallReader& call, const std::vector<at::Tensor>& outputs) {
  const Argument* in = call.at(0);
  std::vector<Layout> result(outputs.size(), call.nonlinear(in));
  if (in == nullptr || !in->layout.has_rows()) return result;
  const bool packed = call.has(8) && call.input(4).isBool();
  const bool padded = call.has(8) && call.input(3).isBool() && call.input(8).isBool();
  const int64_t batch = packed || (padded && call.input(8).toBool()) ? 0 : 1;
  const auto end = [&](std::string_view what) {
    return std::vector<Layout>(outputs.size(), call.ended(what));
  };
  if (in->sizes.size() != (packed ? 2u : 3u) || (!packed && !padded) || in->layout.dim != batch) {
    return end("runs over the dimension of the examples");
  }
  // Of the rows of packed sequences those of the first time say how states are ordered.
  at::Tensor order = labels(in->layout);
  if (packed) {
    const at::Tensor counts = call.input(1).toTensor().to(at::kCPU, at::kLong);
    if (!sequences_keep_order(order, counts)) return end("runs over rows of different examples");
    order = order.slice(0, 0, counts[0].item<int64_t>()).clone();
  }
  const Layout states = labelled(1, call.examples(), order);
  for (const Argument* argument : call.deciding()) {
    if (argument == in || !argument->differentiable) continue;
    if (argument->position != (packed ? 2u : 1u) || !same(argument->layout, states)) {
      return end("takes states or weights of other examples");
    }
  }
  result[0] = in->layout;
  for (size_t i = 1; i < outputs.size(); ++i) result[i] = states;
  return result;
}

}  // namespace tycho::rows
