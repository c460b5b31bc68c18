#include "weight_snapshot.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "torch_compat.h"

namespace tycho {
namespace {

constexpr int64_t kBytesPerTask = int64_t{1} << 20;

/// Bit for bit; both dense, on the CPU, of the same shape, strides and dtype.
bool same_bits(const at::Tensor& left, const at::Tensor& right) {
  const auto bytes = static_cast<int64_t>(left.nbytes());
  const auto* a = static_cast<const char*>(left.data_ptr());
  const auto* b = static_cast<const char*>(right.data_ptr());
  std::atomic<bool> same{true};
  at::parallel_for(0, bytes, kBytesPerTask, [&](int64_t begin, int64_t end) {
    if (same && std::memcmp(a + begin, b + begin, static_cast<size_t>(end - begin)) != 0) {
      same = false;
    }
  });
  return same;
}

}  // namespace

WeightSnapshot::Seen WeightSnapshot::seen_of(const at::Tensor& parameter) {
  return {parameter.has_storage() ? parameter.data_ptr() : nullptr,
          static_cast<int64_t>(parameter._version())};
}

bool WeightSnapshot::fits(const at::Tensor& copy, const at::Tensor& weight) {
  return copy.defined() && copy.sizes() == weight.sizes() && copy.device() == weight.device() &&
         copy.scalar_type() == weight.scalar_type();
}

void WeightSnapshot::take() {
  copies_.resize(model_.parameters.size());
  for (const ParameterInfo& parameter : model_.parameters) {
    at::Tensor& copy = copies_[parameter.id];
    const at::Tensor weight = parameter.tensor.detach();
    if (fits(copy, weight)) {
      copy.copy_(weight);
    } else {
      copy = weight.clone();
    }
  }
  valid_ = true;
}

at::Tensor WeightSnapshot::of(uint32_t parameter) const {
  const at::Tensor& copy = copies_[parameter];
  return fits(copy, model_.parameters[parameter].tensor) ? copy : at::Tensor();
}

void WeightSnapshot::watch() {
  watch_.reset();
  changed_.clear();
  compared_ = compared_by_watcher_ = false;
  if (!valid_) return;
  seen_.resize(model_.parameters.size());
  for (const ParameterInfo& parameter : model_.parameters) {
    seen_[parameter.id] = seen_of(parameter.tensor);
  }
  watcher_ = std::this_thread::get_id();
  watch_.reset(new BackwardWatch(this));  // its base is private
}

std::vector<uint32_t> WeightSnapshot::changed() {
  watch_.reset();
  std::sort(changed_.begin(), changed_.end());
  changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
  return std::move(changed_);
}

/// Another network's pass on another thread may come first: the one on the session's own thread is
/// looked at in any case.
void WeightSnapshot::backward_begins() {
  const bool own = std::this_thread::get_id() == watcher_;
  if (paused_ || compared_by_watcher_ || (compared_ && !own)) return;
  const bool reaches = std::any_of(
      model_.parameters.begin(), model_.parameters.end(), [](const ParameterInfo& parameter) {
        return parameter.tensor.requires_grad() && parameter.tensor.is_leaf() &&
               torch::autograd::impl::try_get_grad_accumulator(parameter.tensor);
      });
  if (!reaches) return;
  compared_ = true;
  compared_by_watcher_ = own;
  for (const ParameterInfo& parameter : model_.parameters) {
    // An exception would end the user's backward pass.
    try {
      compare(parameter);
    } catch (...) {
      copies_[parameter.id] = at::Tensor();
    }
  }
}

void WeightSnapshot::compare(const ParameterInfo& parameter) {
  at::Tensor& copy = copies_[parameter.id];
  const at::Tensor weight = parameter.tensor.detach();
  const Seen now = seen_of(parameter.tensor);
  const Seen before = seen_[parameter.id];
  bool changed = now.data != before.data || now.version != before.version;
  if (!fits(copy, weight)) {
    copy = weight.clone();
    changed = true;
  } else if (!weight.device().is_cpu()) {
    copy.copy_(weight);
  } else {
    const bool comparable =
        weight.is_non_overlapping_and_dense() && copy.strides() == weight.strides();
    changed = comparable ? !same_bits(copy, weight) : !at::equal(copy, weight);
    if (changed) copy.copy_(weight);
  }
  if (changed) changed_.push_back(parameter.id);
}

}  // namespace tycho
