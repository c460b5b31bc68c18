#include "gradient_capture.h"

#include <ATen/ATen.h>

#include <mutex>

#include "tensor_sums.h"
#include "torch_compat.h"

namespace tycho {

struct GradientCapture::Slot {
  uint32_t id = 0;
  at::Tensor parameter;
  compat::GradientAccumulator accumulator;
  uintptr_t key = 0;
  std::mutex mutex;

  // The group of backward passes that counts.
  int64_t backwards = 0;
  uint32_t parameter_version = 0;
  int64_t writes = 0;  // by operators, in this step
  int64_t parameter_writes = 0;
  bool repeated = false;  // more than one backward in this step, counted or not
  at::Tensor sum;         // of what the group's backward passes delivered: a tensor of our own
  at::Tensor sum_norm;    // |sum|^2, where the sum itself is not kept
  at::Tensor fingerprint;
  at::Tensor buffer;  // memory of the sum of an earlier step
  at::Tensor grad;    // .grad after the last backward: held, so that its address is not reused
  uint32_t grad_version = 0;
  std::vector<at::Tensor> norms;
  bool norms_complete = true;
  bool unknown = false;

  // Copies into memory that is there already: fresh memory costs more than the copy.
  void keep(const at::Tensor& gradient) {
    const bool fits =
        buffer.defined() && buffer.use_count() == 1 && buffer.sizes() == gradient.sizes() &&
        buffer.strides() == gradient.strides() && buffer.scalar_type() == gradient.scalar_type() &&
        buffer.device() == gradient.device();
    if (fits) {
      buffer.copy_(gradient);
    } else {
      buffer = gradient.detach().clone();
    }
    sum = buffer;
  }

  void forget() {
    backwards = 0;
    repeated = false;
    sum = sum_norm = fingerprint = grad = at::Tensor();
    norms.clear();
    norms_complete = true;
    unknown = false;
  }
};

class GradientCapture::Hook : public torch::autograd::FunctionPostHook {
 public:
  Hook(GradientCapture* capture, Slot* slot) : capture_(capture), slot_(slot) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list& inputs) override {
    // An exception would end the user's backward pass.
    try {
      if (!inputs.empty() && inputs[0].defined()) capture_->delivered(slot_, inputs[0]);
    } catch (...) {
      std::lock_guard lock(slot_->mutex);
      slot_->unknown = true;
    }
    return outputs;
  }

 private:
  GradientCapture* capture_;
  Slot* slot_;
};

GradientCapture::GradientCapture(const ModelInfo& model, Listener listener)
    : listener_(std::move(listener)) {
  for (const ParameterInfo& parameter : model.parameters) {
    auto slot = std::make_unique<Slot>();
    slot->id = parameter.id;
    slot->parameter = parameter.tensor;
    slots_.push_back(std::move(slot));
  }
}

GradientCapture::~GradientCapture() { uninstall(); }

void GradientCapture::install(Keep keep, bool microbatch_norms, bool sees_writes) {
  sees_writes_ = sees_writes;
  // One that is not the only one of its step must be added to the others.
  keep_ = several_backwards_ ? Keep::kCopy : keep;
  microbatch_norms_ = microbatch_norms;
  for (auto& slot : slots_) {
    slot->forget();
    // Frozen and unfrozen between steps: asked each time.
    if (!slot->parameter.requires_grad() || !slot->parameter.is_leaf()) continue;
    slot->accumulator = torch::autograd::impl::grad_accumulator(slot->parameter);
    if (!slot->accumulator) continue;
    slot->key = slot->accumulator->add_post_hook(std::make_unique<Hook>(this, slot.get()));
  }
}

void GradientCapture::uninstall() {
  for (auto& slot : slots_) {
    if (!slot->accumulator) continue;
    slot->accumulator->del_post_hook(slot->key);
    slot->accumulator = compat::GradientAccumulator();
  }
}

void GradientCapture::written(uint32_t parameter) {
  Slot& slot = *slots_[parameter];
  std::lock_guard lock(slot.mutex);
  ++slot.writes;
}

void GradientCapture::delivered(Slot* slot, const at::Tensor& gradient) {
  if (paused_) return;
  std::lock_guard lock(slot->mutex);
  const bool builds_graph = at::GradMode::is_enabled();
  at::NoGradGuard no_grad;
  if (gradient.is_sparse() || gradient.layout() != at::kStrided || builds_graph ||
      compat::has_late_hooks(slot->parameter)) {
    // With create_graph .grad is replaced at every backward, which cannot be told from clearing it.
    slot->unknown = true;
    listener_(slot->id, gradient, Use::kUnknown);
    return;
  }
  const at::Tensor grad = slot->parameter.grad();
  Use use = Use::kFirst;
  if (slot->backwards > 0) {
    const bool accumulated = grad.defined() &&
                             grad.unsafeGetTensorImpl() == slot->grad.unsafeGetTensorImpl() &&
                             grad._version() == slot->grad_version + 1;
    slot->repeated = true;
    const bool moved = slot->parameter._version() != slot->parameter_version ||
                       slot->writes != slot->parameter_writes;
    if (moved) {
      use = Use::kIgnored;
    } else if (!sees_writes_) {
      // The parameter may have moved through .data(), which leaves the version as it was.
      slot->unknown = true;
      use = Use::kUnknown;
    } else if (accumulated) {
      use = Use::kContinues;
    }
  }
  if (use == Use::kIgnored || slot->unknown) {
    if (slot->unknown) use = Use::kUnknown;
    listener_(slot->id, gradient, use);
    return;
  }
  if (use == Use::kFirst) {
    const bool repeated = slot->repeated;
    slot->forget();
    slot->repeated = repeated;
    slot->parameter_writes = slot->writes;
    slot->parameter_version = slot->parameter._version();
    // Clipping writes through .grad().data(), which no version counter shows.
    // A fingerprint depends on the order of summation, so on the layout.
    if (keep_ == Keep::kFingerprint && sums_fast(gradient) &&
        gradient.strides() == slot->parameter.strides()) {
      slot->fingerprint = sum_and_square(gradient);
      slot->sum_norm = slot->fingerprint[1];
    } else if (keep_ == Keep::kNorm) {
      slot->sum_norm = squared_norm(gradient);
    } else {
      slot->keep(gradient);
    }
  } else if (slot->sum.defined()) {
    slot->sum.add_(gradient);
  } else {
    slot->unknown = true;  // The first of several, in the first step that has several, is gone.
    listener_(slot->id, gradient, Use::kUnknown);
    return;
  }
  ++slot->backwards;
  if (microbatch_norms_) {
    if (slot->backwards == 1 && !several_backwards_) {
      slot->norms_complete = false;  // Not needed where a step has one backward.
    } else {
      slot->norms.push_back(squared_norm(gradient));
    }
  }
  slot->grad = grad;
  slot->grad_version = grad.defined() ? grad._version() : 0;
  listener_(slot->id, gradient, use);
}

std::vector<GradientCapture::Captured> GradientCapture::take() {
  std::vector<Captured> result(slots_.size());
  bool several = false;
  bool any = false;
  for (auto& slot : slots_) {
    Captured& captured = result[slot->id];
    captured.unknown = slot->unknown;
    captured.backwards = slot->backwards;
    several = several || slot->repeated;
    if (slot->backwards > 0 && !slot->unknown) {
      any = true;
      const at::Tensor now = slot->parameter.grad();
      captured.cleared = !now.defined();
      captured.gradient = slot->sum;
      captured.norm_sq = slot->sum_norm;
      captured.fingerprint = slot->fingerprint;
      if (slot->norms_complete || slot->backwards == 1)
        captured.microbatch_norm_sq = std::move(slot->norms);
    }
    slot->forget();
  }
  if (any || several) several_backwards_ = several;
  return result;
}

}  // namespace tycho
