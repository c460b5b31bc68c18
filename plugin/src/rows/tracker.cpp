#include "rows/tracker.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace tycho::rows {
namespace {

constexpr size_t kMaxBatchSizes = 4;

uint32_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : tensor._version();
}

const void* storage_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

bool is_number(const at::Tensor& tensor) { return tensor.dim() == 0 && !tensor.requires_grad(); }

std::string_view plain_name(std::string_view name, bool* in_place) {
  const size_t colons = name.find("::");
  if (colons != std::string_view::npos) name.remove_prefix(colons + 2);
  *in_place = name.size() > 1 && name.back() == '_' && name[name.size() - 2] != '_';
  if (*in_place) name.remove_suffix(1);
  return name;
}

void add_sizes(const std::vector<Layout>& layouts, std::vector<int64_t>* sizes) {
  for (const Layout& layout : layouts) {
    if (layout.examples > 0 &&
        std::find(sizes->begin(), sizes->end(), layout.examples) == sizes->end() &&
        sizes->size() < kMaxBatchSizes) {
      sizes->push_back(layout.examples);
    }
  }
}

}  // namespace

Tracker::Tracker(std::function<bool(const at::Tensor&)> is_parameter,
                 std::function<void(const at::Tensor&, const std::string&)> on_lost)
    : is_parameter_(std::move(is_parameter)), on_lost_(std::move(on_lost)) {}

void Tracker::start_step(int64_t batch_dim, int64_t expected) {
  batch_dim_ = batch_dim;
  expected_ = expected;
  examples_ = 0;
  entries_.clear();
  writes_.clear();
  forget_rest_of_call();
}

void Tracker::forget_rest_of_call() {
  inputs_.clear();
  arguments_.clear();
  argument_layouts_.clear();
}

Layout Tracker::in_batch_of(const Layouts& layouts, int64_t examples) {
  for (const Layout& layout : layouts) {
    if (layout.examples == examples) return layout;
    if (layout.lost() && layout.examples == 0) return lost(examples, layout.why);
  }
  return none(examples);
}

Tracker::Layouts Tracker::layouts(const at::Tensor& tensor) const {
  if (!tensor.defined() || is_parameter_(tensor)) return {};
  const auto found = entries_.find(tensor.unsafeGetTensorImpl());
  if (found != entries_.end()) {
    const uint32_t now = version_of(tensor);
    if (now == found->second.version) return found->second.layouts;
    const auto writes = writes_.find(storage_of(tensor));
    if (writes != writes_.end() && writes->second.until == now &&
        found->second.version >= writes->second.since) {
      return found->second.layouts;
    }
    return {lost(0, "a tensor was written to through a view of it, or without gradients")};
  }
  if (is_number(tensor)) return {};
  if (tensor.grad_fn()) {
    return {lost(0,
                 "a custom function, or a gradient of a gradient, made a tensor without operators "
                 "that could be followed")};
  }
  if (tensor.dim() <= batch_dim_ || tensor.size(batch_dim_) == 0) return {};
  return {whole(batch_dim_, tensor.size(batch_dim_))};
}

Layout Tracker::layout(const at::Tensor& tensor) const {
  const Layouts all = layouts(tensor);
  if (examples_ == 0) {
    for (const Layout& layout : all) {
      if (layout.lost()) return layout;
    }
  }
  return in_batch_of(all, examples_);
}

bool Tracker::decide(const std::vector<at::Tensor>& operands) {
  if (examples_ == 0) examples_ = likely_examples(operands);
  return examples_ > 0;
}

int64_t Tracker::likely_examples(const std::vector<at::Tensor>& operands) const {
  // Of several sizes, one of which all examples are there, and the expected one, come first; before
  // them the expected one where all of it is one of its examples, taken by a loop.
  int64_t examples = 0;
  int best = -1;
  for (const at::Tensor& operand : operands) {
    for (const Layout& layout : layouts(operand)) {
      if (!layout.has_rows()) continue;
      const bool expected = layout.examples == expected_;
      const bool single = expected && layout.labels.defined() && layout.labels.numel() > 1 &&
                          layout.labels.eq(layout.labels[0]).all().item<bool>();
      const int rank = single ? 4 : (complete(layout) ? 2 : 0) + (expected ? 1 : 0);
      if (rank <= best) continue;
      best = rank;
      examples = layout.examples;
    }
  }
  return examples;
}

// What was lost out of sight is said once, of the tensor itself.
void Tracker::meet(const at::Tensor& tensor, const Layouts& layouts) {
  if (layouts.size() != 1 || !layouts[0].lost() || layouts[0].examples != 0) return;
  if (!tensor.requires_grad() || !tensor.grad_fn()) return;
  const auto found = entries_.find(tensor.unsafeGetTensorImpl());
  if (found != entries_.end() && found->second.version == version_of(tensor)) return;
  on_lost_(tensor, layouts[0].why);
  entries_.insert_or_assign(
      tensor.unsafeGetTensorImpl(),
      Entry{c10::weak_intrusive_ptr<c10::TensorImpl>(tensor.getIntrusivePtr()), version_of(tensor),
            layouts});
}

void Tracker::before(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  forget_rest_of_call();
  name_ = plain_name(name, &in_place_);
  makes_data_ = makes_data(name_);
  const auto add = [&](const at::Tensor& tensor, size_t position) {
    if (!tensor.defined()) return;
    argument_layouts_.push_back(layouts(tensor));
    meet(tensor, argument_layouts_.back());
    arguments_.push_back({tensor, tensor.sizes().vec(), {}, tensor.requires_grad(), position});
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].isTensor()) {
      add(inputs[i].toTensor(), i);
    } else if (inputs[i].isList()) {
      for (const c10::IValue& entry : inputs[i].toListRef()) {
        if (!entry.isTensor()) break;
        add(entry.toTensor(), i);
      }
    }
  }
  inputs_.assign(inputs.begin(), inputs.end());
  if (in_place_ && !arguments_.empty()) version_before_ = version_of(arguments_[0].tensor);
}

void Tracker::after(const std::vector<c10::IValue>& results) {
  std::vector<at::Tensor> outputs;
  for (const c10::IValue& result : results) {
    if (result.isTensor() && result.toTensor().defined()) outputs.push_back(result.toTensor());
    if (result.isTensorList()) {
      for (const at::Tensor& tensor : result.toTensorVector()) outputs.push_back(tensor);
    }
  }
  if (outputs.empty()) return forget_rest_of_call();
  std::vector<int64_t> sizes;
  if (examples_ > 0) {
    sizes.push_back(examples_);
  } else {
    for (const Layouts& layouts : argument_layouts_) add_sizes(layouts, &sizes);
  }
  bool everywhere = false;  // lost whatever the size of the batch
  bool reads_data = false;
  for (const Layouts& layouts : argument_layouts_) {
    reads_data = reads_data || !layouts.empty();
    for (const Layout& layout : layouts) everywhere = everywhere || layout.examples == 0;
  }
  if (everywhere && sizes.empty()) sizes.push_back(0);
  std::vector<Layouts> found(outputs.size());
  std::vector<std::string> newly_lost(outputs.size());
  Call call;
  call.name = name_;
  call.inputs = inputs_;
  call.outputs = &outputs;
  for (const int64_t size : sizes) {
    call.examples = size;
    call.tensors = arguments_;
    bool from_known = false;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      call.tensors[i].layout = in_batch_of(argument_layouts_[i], size);
      from_known = from_known || (arguments_[i].differentiable &&
                                  (call.tensors[i].layout.has_rows() ||
                                   call.tensors[i].layout.kind == Layout::Kind::kSum));
    }
    std::vector<Layout> by_output;
    try {
      by_output = apply(call);
    } catch (const std::exception&) {
      by_output.assign(outputs.size(),
                       lost(size, "aten::" + name_ + " was called in a way that is not known"));
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (by_output[i].none()) continue;
      found[i].push_back(by_output[i]);
      if (by_output[i].lost() && from_known && outputs[i].requires_grad()) {
        newly_lost[i] = by_output[i].why;
      }
    }
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const at::Tensor& output = outputs[i];
    if (!newly_lost[i].empty()) on_lost_(output, newly_lost[i]);
    if (is_parameter_(output)) continue;
    // Filled by the program through a pointer, perhaps.
    const bool to_be_filled =
        output.is_floating_point() && (name_ == "zeros" || name_ == "ones" || name_ == "full");
    if ((makes_data_ || to_be_filled) && !reads_data && !in_place_) {
      entries_.erase(output.unsafeGetTensorImpl());  // As if it came from outside.
      continue;
    }
    // Rows drawn from as many may be a batch put together, or rows of the batch that were moved.
    for (Layout& layout : found[i]) {
      if (output.requires_grad() || examples_ > 0 || !layout.labels.defined()) continue;
      if (layout.labels.numel() != layout.examples || complete(layout)) continue;
      layout =
          lost(layout.examples, "as many rows are drawn, some twice, as there are to draw from");
    }
    // The batch may just have been put together: of samples, or of rows of a data set.
    if (reads_data && !output.requires_grad() && examples_ == 0 && output.dim() > batch_dim_ &&
        !in_place_) {
      const int64_t size = output.size(batch_dim_);
      const bool fresh = std::none_of(found[i].begin(), found[i].end(), [&](const Layout& layout) {
        return layout.examples == size;
      });
      if (fresh && size > 0 && found[i].size() < kMaxBatchSizes) {
        found[i].push_back(whole(batch_dim_, size));
      }
    }
    note(output, std::move(found[i]));
  }
  forget_rest_of_call();
}

void Tracker::note(const at::Tensor& output, Layouts layouts) {
  const uint32_t version = version_of(output);
  if (in_place_ && !arguments_.empty() && arguments_[0].tensor.is_same(output)) {
    const Layouts& previous = argument_layouts_[0];
    bool unmoved = previous.size() == layouts.size() && arguments_[0].sizes == output.sizes().vec();
    for (size_t i = 0; unmoved && i < layouts.size(); ++i) {
      unmoved = !layouts[i].lost() && same(layouts[i], previous[i]);
    }
    Writes& writes = writes_[storage_of(output)];
    if (!unmoved || writes.until != version_before_) {
      writes.since = unmoved ? version_before_ : version;
    }
    writes.until = version;
    if (makes_data_ && layouts.empty()) {
      entries_.erase(output.unsafeGetTensorImpl());
      return;
    }
  }
  entries_.insert_or_assign(
      output.unsafeGetTensorImpl(),
      Entry{c10::weak_intrusive_ptr<c10::TensorImpl>(output.getIntrusivePtr()), version,
            std::move(layouts)});
}

}  // namespace tycho::rows
