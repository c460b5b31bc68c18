#include <ATen/ATen.h>

#include <algorithm>

#include "rows/call_reader.h"

// Operators that take some of the rows of a tensor, repeat them, or put rows together.
namespace tycho::rows {
namespace {

Layout repeat(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  Layout result = in->layout;
  result.dim += out.dim() - static_cast<int64_t>(in->sizes.size());
  const int64_t times = out.size(result.dim) / in->sizes[static_cast<size_t>(in->layout.dim)];
  return labelled(result.dim, call.examples(), labels(in->layout).repeat({times}));
}

Layout repeat_interleave(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  const auto dim = call.optional_dim(2, in->sizes.size());
  if (dim && *dim != in->layout.dim) return in->layout;
  if (!dim && in->sizes.size() != 1) return call.ended("flattens what it repeats");
  const at::Tensor all = labels(in->layout);
  if (call.input(1).isTensor()) {
    const at::Tensor times = call.input(1).toTensor().to(at::kCPU);
    return labelled(in->layout.dim, call.examples(), at::repeat_interleave(all, times));
  }
  const int64_t times = out.size(in->layout.dim) / std::max<int64_t>(1, all.numel());
  return labelled(in->layout.dim, call.examples(), at::repeat_interleave(all, times));
}

// All of it is one example's: so is each index of its first dimension.
Layout of_one(const CallReader& call, int64_t example, const at::Tensor& out) {
  if (out.dim() == 0 || example < 0) return call.ended("takes one of the examples");
  return labelled(0, call.examples(), at::full({out.size(0)}, example, at::kLong));
}

Layout select(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  const int64_t dim = call.dim(1, static_cast<int64_t>(in->sizes.size()));
  if (dim == in->layout.dim) {
    int64_t index = call.input(2).isInt() ? call.input(2).toInt() : 0;
    if (index < 0) index += in->sizes[static_cast<size_t>(dim)];
    return of_one(call, labels(in->layout)[index].item<int64_t>(), out);
  }
  return in_dim(in->layout, in->layout.dim - (dim < in->layout.dim ? 1 : 0));
}

// slice, narrow: found by what is left of the dimension.
Layout slice(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  const auto dims = static_cast<int64_t>(in->sizes.size());
  const int64_t dim = call.dim(1, dims);
  if (dim != in->layout.dim) return in->layout;
  const int64_t size = in->sizes[static_cast<size_t>(dim)];
  if (out.size(dim) == size) return in->layout;
  int64_t start = call.input(2).isInt() ? call.input(2).toInt() : 0;
  start = std::min(std::max<int64_t>(start < 0 ? start + size : start, 0), size);
  const int64_t step = call.name() == "slice" && call.input(4).isInt() ? call.input(4).toInt() : 1;
  return taken(in->layout, at::arange(out.size(dim), at::kLong) * step + start);
}

Layout index_select(const CallReader& call, const at::Tensor&) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  if (call.dim(1, in->sizes.size()) != in->layout.dim) return in->layout;
  return taken(in->layout, call.input(2).toTensor());
}

Layout flip(const CallReader& call, const at::Tensor&) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  const auto dims = static_cast<int64_t>(in->sizes.size());
  if (call.name() == "roll") {
    const auto along = call.dims_of(2, dims);
    const auto shifts = call.ints(1);
    const auto found = std::find(along.begin(), along.end(), in->layout.dim);
    if (along.empty()) return call.ended("rolls all dimensions as one");
    if (found == along.end()) return in->layout;
    const auto shift = shifts[static_cast<size_t>(found - along.begin())];
    return labelled(in->layout.dim, call.examples(), labels(in->layout).roll(shift));
  }
  const auto along = call.dims_of(1, dims);
  if (std::find(along.begin(), along.end(), in->layout.dim) == along.end()) return in->layout;
  return labelled(in->layout.dim, call.examples(), labels(in->layout).flip(0));
}

// self[..., index, ...], masks included.
Layout index(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  const auto list = call.input(1).toListRef();
  std::vector<at::Tensor> indices;
  std::vector<int64_t> dims;  // of self, that each index replaces
  int64_t dim = 0;
  int64_t begin = -1, end = -1;
  for (const c10::IValue& entry : list) {
    if (!entry.isTensor() || !entry.toTensor().defined()) {
      ++dim;
      continue;
    }
    const at::Tensor where = entry.toTensor().cpu();
    if (begin >= 0 && end != dim) return call.ended("takes rows by indices that lie apart");
    if (begin < 0) begin = dim;
    if (where.scalar_type() == at::kBool || where.scalar_type() == at::kByte) {
      const at::Tensor found = where.nonzero();
      for (int64_t i = 0; i < where.dim(); ++i) {
        indices.push_back(found.select(1, i));
        dims.push_back(dim++);
      }
    } else {
      indices.push_back(where.to(at::kLong));
      dims.push_back(dim++);
    }
    end = dim;
  }
  if (indices.empty()) return in->layout;
  indices = at::broadcast_tensors(indices);
  const int64_t added = indices[0].dim();
  if (in->layout.dim < begin) return in->layout;
  if (in->layout.dim >= end) return in_dim(in->layout, in->layout.dim - (end - begin) + added);
  const auto which = std::find(dims.begin(), dims.end(), in->layout.dim) - dims.begin();
  if (added == 0) return call.ended("takes one of the examples");
  const at::Tensor where = indices[static_cast<size_t>(which)];
  // As if rows were taken along one dimension, which is then looked at in the shape of the index.
  const Layout flat = in_dim(taken(in->layout, where), begin);
  std::vector<int64_t> sizes = out.sizes().vec();
  sizes.erase(sizes.begin() + begin, sizes.begin() + begin + added);
  sizes.insert(sizes.begin() + begin, where.numel());
  return reshaped(flat, sizes, out.sizes());
}

Layout masked_select(const CallReader& call, const at::Tensor&) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  const at::Tensor mask = call.input(1).toTensor().cpu();
  const at::Tensor shaped = at::empty(in->sizes, at::kBool);
  const auto both = at::broadcast_tensors({mask, shaped});
  const Layout wide = broadcast(in->layout, in->sizes, both[0].sizes());
  if (!wide.has_rows()) return wide;
  std::vector<int64_t> view(static_cast<size_t>(both[0].dim()), 1);
  view[static_cast<size_t>(wide.dim)] = -1;
  const at::Tensor all = labels(wide).reshape(view).expand(both[0].sizes());
  return labelled(0, call.examples(), all.masked_select(both[0]));
}

Layout gather(const CallReader& call, const at::Tensor& out) {
  const Argument* in = call.first();
  if (in == nullptr || !in->layout.has_rows()) return call.unchanged(in);
  if (call.dim(1, in->sizes.size()) == in->layout.dim) {
    return call.ended("gathers rows along the dimension of the examples");
  }
  if (out.size(in->layout.dim) != in->sizes[static_cast<size_t>(in->layout.dim)]) {
    return call.ended("leaves out examples");
  }
  return in->layout;
}

// Adds rows of `source` to rows of self at `index`.
Layout index_add(const CallReader& call, const at::Tensor& out) {
  const auto dims = out.dim();
  const int64_t dim = call.dim(1, dims);
  const auto deciding = call.deciding();
  const Layout joined = [&] {
    for (const Argument* argument : deciding) {
      if (argument->layout.kind == Layout::Kind::kSum) return call.ended("adds to sums");
      if (argument->layout.lost()) return argument->layout;
    }
    return none(call.examples());
  }();
  if (joined.lost()) return joined;
  const bool along = std::any_of(deciding.begin(), deciding.end(), [&](const Argument* argument) {
    return argument->layout.dim == dim;
  });
  if (!along) return call.joined(out);
  at::Tensor all = at::full({out.size(dim)}, kNoExample, at::kLong);
  int64_t* label = all.data_ptr<int64_t>();
  for (const Argument* argument : deciding) {
    if (argument->layout.dim != dim) return call.ended("adds rows of different layouts");
    const at::Tensor from = labels(argument->layout);
    if (argument->position == 0) {
      all.copy_(from);
      continue;
    }
    const at::Tensor index = call.input(2).toTensor().to(at::kCPU, at::kLong).contiguous();
    if (index.dim() != 1 || index.numel() != from.numel()) {
      return call.ended("adds rows to different places in different columns");
    }
    for (int64_t i = 0; i < index.numel(); ++i) {
      int64_t& here = label[index.data_ptr<int64_t>()[i]];
      const int64_t added = from.data_ptr<int64_t>()[i];
      if (here != kNoExample && here != added)
        return call.ended("adds up rows of several examples");
      here = added;
    }
  }
  return labelled(dim, call.examples(), all);
}

Layout concatenate(const CallReader& call, const at::Tensor& out) {
  const bool stacks = call.name() == "stack";
  const int64_t dim = call.dim(1, out.dim());
  const auto deciding = call.deciding();
  if (deciding.empty()) return none(call.examples());
  const Layout& model = deciding[0]->layout;
  for (const Argument* argument : deciding) {
    if (!argument->layout.has_rows()) return call.joined(out, true);
  }
  if (stacks || model.dim != dim) {
    for (const Argument* argument : deciding) {
      if (!same(argument->layout, model)) return call.ended("joins different rows of examples");
    }
    return in_dim(model, model.dim + (stacks && dim <= model.dim ? 1 : 0));
  }
  std::vector<at::Tensor> parts;
  for (const Argument& argument : call.tensors()) {
    const int64_t size =
        argument.sizes.size() == out.sizes().size() ? argument.sizes[static_cast<size_t>(dim)] : 0;
    if (argument.layout.lost()) return argument.layout;
    const bool known = argument.layout.has_rows() && argument.layout.dim == dim;
    if (!known && argument.layout.has_rows() && argument.differentiable) {
      return call.ended("joins different rows of examples");
    }
    parts.push_back(known ? labels(argument.layout) : at::full({size}, kNoExample, at::kLong));
  }
  return labelled(dim, call.examples(), at::cat(parts));
}

}  // namespace

std::unordered_map<std::string_view, Layout (*)(const CallReader&, const at::Tensor&)>
moving_rules() {
  std::unordered_map<std::string_view, Layout (*)(const CallReader&, const at::Tensor&)> all;
  for (const char* name : {"repeat", "tile"}) all.emplace(name, &repeat);
  all.emplace("repeat_interleave", &repeat_interleave);
  all.emplace("select", &select);
  for (const char* name : {"slice", "narrow"}) all.emplace(name, &slice);
  all.emplace("index_select", &index_select);
  for (const char* name : {"flip", "roll"}) all.emplace(name, &flip);
  all.emplace("index", &index);
  all.emplace("masked_select", &masked_select);
  for (const char* name : {"gather", "take_along_dim"}) all.emplace(name, &gather);
  for (const char* name : {"index_add", "scatter_add"}) all.emplace(name, &index_add);
  for (const char* name : {"cat", "concat", "concatenate", "stack"}) {
    all.emplace(name, &concatenate);
  }
  return all;
}

std::vector<Layout> pieces(const CallReader& call, const std::vector<at::Tensor>& outputs) {
  const Argument* in = call.first();
  std::vector<Layout> result;
  int64_t start = 0;
  const bool unbinds = call.name() == "unbind";
  const int64_t dim = in == nullptr ? 0 : call.dim(unbinds ? 1 : 2, in->sizes.size());
  for (const at::Tensor& out : outputs) {
    if (in == nullptr || !in->layout.has_rows()) {
      result.push_back(call.unchanged(in));
    } else if (unbinds) {
      result.push_back(dim == in->layout.dim
                           ? of_one(call, labels(in->layout)[start++].item<int64_t>(), out)
                           : in_dim(in->layout, in->layout.dim - (dim < in->layout.dim ? 1 : 0)));
    } else if (dim != in->layout.dim) {
      result.push_back(in->layout);
    } else {
      result.push_back(taken(in->layout, at::arange(start, start + out.size(dim), at::kLong)));
      start += out.size(dim);
    }
  }
  return result;
}

}  // namespace tycho::rows
