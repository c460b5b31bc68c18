#pragma once

#include <memory>

#include "torch_compat.h"

namespace tycho {

/// A post-hook on the gradient accumulator of a parameter that a graph holds now. Keeps neither the
/// graph nor the accumulator.
class AccumulatorHook {
 public:
  AccumulatorHook() = default;
  ~AccumulatorHook() { detach(); }
  AccumulatorHook(const AccumulatorHook&) = delete;
  AccumulatorHook& operator=(const AccumulatorHook&) = delete;

  /// Adds what `make` returns, unless it is there already. False where no graph depends on the
  /// parameter. Only where the accumulator does not run at the same time on another thread.
  template <typename Make>
  bool attach(const at::Tensor& parameter, const Make& make) {
    if (!parameter.requires_grad() || !parameter.is_leaf()) return false;
    const auto accumulator = torch::autograd::impl::try_get_grad_accumulator(parameter);
    if (!accumulator) return false;
    if (accumulator_.lock() == accumulator) return true;
    detach();
    key_ = accumulator->add_post_hook(make());
    accumulator_ = accumulator;
    return true;
  }

  void detach() {
    if (const auto accumulator = accumulator_.lock()) accumulator->del_post_hook(key_);
    accumulator_ = {};
  }

 private:
  compat::WeakNode accumulator_;
  uintptr_t key_ = 0;
};

}  // namespace tycho
