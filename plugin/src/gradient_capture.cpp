#include "gradient_capture.h"

#include <ATen/ATen.h>

#include "accumulator_hook.h"
#include "tensor_sums.h"
#include "torch_compat.h"

namespace tycho {

struct GradientCapture::Slot {
  uint32_t id = 0;
  at::Tensor parameter;
  AccumulatorHook hook;
  std::mutex mutex;

  // The group of backward passes that counts.
  int64_t backwards = 0;
  int64_t writes = 0;  // by operators
  /// Where the parameter stands, as far as that can be seen.
  struct Place {
    uint32_t version = 0;
    int64_t writes = 0;
    const void* data = nullptr;
    bool operator!=(const Place& other) const {
      return version != other.version || writes != other.writes || data != other.data;
    }
  };
  Place place;            // at the group's first backward
  Place last_place;       // at the step's last backward, counted or not
  bool replaced = false;  // a later backward, at another place, had `.grad` for itself
  bool repeated = false;  // more than one backward in this step, counted or not
  at::Tensor sum;         // of what the group's backward passes delivered: a tensor of our own
  at::Tensor sum_norm;    // |sum|^2, where the sum itself is not kept
  at::Tensor fingerprint;
  at::Tensor buffer;  // memory of the sum of an earlier step
  at::Tensor grad;    // .grad after the last backward: held, so that its address is not reused
  uint32_t grad_version = 0;
  std::vector<at::Tensor> norms;
  bool norms_complete = true;
  std::string unknown;  // not empty: why the gradient of this step cannot be had
  std::string why_no_examples;

  // Copies into memory that is there already: fresh memory costs more than the copy.
  void keep(const at::Tensor& gradient) {
    if (gradient.is_sparse()) {
      sum = gradient.detach().coalesce().clone();
      return;
    }
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

  Place now() const {
    return {static_cast<uint32_t>(parameter._version()), writes,
            parameter.has_storage() ? parameter.data_ptr() : nullptr};
  }

  void forget() {
    backwards = 0;
    repeated = replaced = false;
    sum = sum_norm = fingerprint = grad = at::Tensor();
    norms.clear();
    norms_complete = true;
    unknown.clear();
    why_no_examples.clear();
  }

  // Whether `.grad`, which create_graph replaces at every backward, is now what it was before and
  // `gradient` added to it. On other devices the comparison would wait for the device.
  bool added(const at::Tensor& now, const at::Tensor& gradient) const {
    return grad.defined() && now.defined() && now.device().is_cpu() &&
           now.layout() == at::kStrided && gradient.layout() == at::kStrided &&
           now.sizes() == grad.sizes() && at::equal(now, grad + gradient);
  }
};

class GradientCapture::Hook : public torch::autograd::FunctionPostHook {
 public:
  Hook(GradientCapture* capture, Slot* slot) : capture_(capture), slot_(slot) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list& inputs) override {
    const WorkMeter::Stretch stretch(capture_->meter_);
    // An exception would end the user's backward pass.
    try {
      if (!inputs.empty() && inputs[0].defined()) capture_->delivered(slot_, inputs[0]);
    } catch (...) {
      std::lock_guard lock(slot_->mutex);
      slot_->unknown = "taking it failed";
    }
    return outputs;
  }

 private:
  GradientCapture* capture_;
  Slot* slot_;
};

GradientCapture::GradientCapture(const ModelInfo& model, Listener listener, WorkMeter* meter)
    : listener_(std::move(listener)), meter_(meter) {
  for (const ParameterInfo& parameter : model.parameters) {
    auto slot = std::make_unique<Slot>();
    slot->id = parameter.id;
    slot->parameter = parameter.tensor;
    slots_.push_back(std::move(slot));
  }
}

GradientCapture::~GradientCapture() { uninstall(); }

void GradientCapture::install(Keep keep, bool microbatch_norms, bool sees_writes) {
  watch_.reset();
  sees_writes_ = sees_writes;
  // One that is not the only one of its step must be added to the others.
  keep_ = several_backwards_ && keep != Keep::kNothing ? Keep::kCopy : keep;
  microbatch_norms_ = microbatch_norms;
  installer_ = std::this_thread::get_id();
  armed_by_ = {};
  on_cpu_ = true;
  for (auto& slot : slots_) {
    slot->forget();
    on_cpu_ = on_cpu_ && slot->parameter.device().is_cpu();
  }
  watch_.reset(new BackwardWatch(this));  // its base is private
}

/// The pass may be another network's, on any thread: no hook may be added to an accumulator that
/// runs on another thread at that moment. On the CPU it runs on the thread that called backward();
/// the first one that does, and the one that ends the steps, are listened to.
void GradientCapture::backward_begins() {
  if (paused_) return;
  const auto thread = std::this_thread::get_id();
  if (on_cpu_ && armed_by_ != std::thread::id() && armed_by_ != thread && thread != installer_) {
    return;
  }
  bool any = false;
  for (auto& slot : slots_) {
    any = slot->hook.attach(slot->parameter, [&] {
      return std::make_unique<Hook>(this, slot.get());
    }) || any;
  }
  if (any) armed_by_ = thread;
}

void GradientCapture::uninstall() {
  watch_.reset();
  for (auto& slot : slots_) slot->hook.detach();
}

void GradientCapture::written(uint32_t parameter) {
  Slot& slot = *slots_[parameter];
  std::lock_guard lock(slot.mutex);
  ++slot.writes;
}

void GradientCapture::delivered(Slot* slot, const at::Tensor& from_backward) {
  if (paused_) return;
  std::lock_guard lock(slot->mutex);
  const bool builds_graph = at::GradMode::is_enabled();
  at::NoGradGuard no_grad;
  const auto give_up = [&](const char* why) {
    slot->unknown = why;
    listener_(slot->id, from_backward, Use::kUnknown);
  };
  if (!slot->unknown.empty()) return give_up(std::string(slot->unknown).c_str());
  if (!from_backward.is_sparse() && from_backward.layout() != at::kStrided) {
    return give_up("its layout is neither dense nor COO");
  }
  const at::Tensor grad = slot->parameter.grad();
  const bool hooked = compat::has_late_hooks(slot->parameter);
  Use use = Use::kFirst;
  if (slot->backwards > 0) {
    const bool accumulated =
        builds_graph
            ? slot->added(grad, from_backward)
            : grad.defined() && grad.unsafeGetTensorImpl() == slot->grad.unsafeGetTensorImpl() &&
                  grad._version() == slot->grad_version + 1;
    slot->repeated = true;
    const Slot::Place here = slot->now();
    slot->last_place = here;
    if (slot->place != here) {
      slot->replaced = slot->replaced || !accumulated;
      if (!follows_ || accumulated) {
        listener_(slot->id, from_backward, Use::kIgnored);
        return;
      }
    } else if (!sees_writes_) {
      // The parameter may have moved through .data(), which leaves the version as it was.
      return give_up("it is the first step with several backward passes");
    } else if (accumulated) {
      use = Use::kContinues;
    } else if (builds_graph &&
               !(grad.defined() && grad.device().is_cpu() && at::equal(grad, from_backward))) {
      return give_up("several backward passes with create_graph cannot be told apart");
    }
  }
  // What is added to `.grad` is not known where hooks change it, only what `.grad` is then.
  const at::Tensor& gradient = hooked ? grad : from_backward;
  if (!gradient.defined()) return give_up("a hook changes it, and .grad was not written");
  if (use == Use::kFirst) {
    const bool repeated = slot->repeated;
    const bool replaced = slot->replaced;
    slot->forget();
    slot->repeated = repeated;
    slot->replaced = replaced;
    slot->place = slot->last_place = slot->now();
    // Clipping writes through .grad().data(), which no version counter shows.
    // A fingerprint depends on the order of summation, so on the layout.
    if (keep_ == Keep::kFingerprint && !gradient.is_sparse() && sums_fast(gradient) &&
        gradient.strides() == slot->parameter.strides()) {
      slot->fingerprint = sum_and_square(gradient);
      slot->sum_norm = slot->fingerprint[1];
    } else if (keep_ == Keep::kNorm) {
      slot->sum_norm = squared_norm(gradient);
    } else if (keep_ != Keep::kNothing) {
      slot->keep(gradient);
    }
  } else if (keep_ == Keep::kNothing) {
    // Only that it came is asked for.
  } else if (!slot->sum.defined()) {
    return give_up("it is the first step with several backward passes");
  } else if (hooked) {
    slot->keep(gradient);
  } else if (slot->sum.is_sparse() || gradient.is_sparse()) {
    const bool dense = !slot->sum.is_sparse() || !gradient.is_sparse();
    const auto same = [&](const at::Tensor& t) {
      return dense && t.is_sparse() ? t.to_dense() : t;
    };
    slot->sum = same(slot->sum) + same(gradient);
    if (slot->sum.is_sparse()) slot->sum = slot->sum.coalesce();
  } else {
    slot->sum.add_(gradient);
  }
  ++slot->backwards;
  if (microbatch_norms_) {
    if (hooked || (slot->backwards == 1 && !several_backwards_)) {
      slot->norms_complete = false;  // Not needed where a step has one backward.
    } else {
      slot->norms.push_back(squared_norm(gradient));
    }
  }
  slot->grad = grad;
  slot->grad_version = grad.defined() ? grad._version() : 0;
  if (hooked) slot->why_no_examples = "a hook of the program changes its gradient";
  if (from_backward.is_sparse()) slot->why_no_examples = "its gradient is sparse";
  listener_(slot->id, from_backward, slot->why_no_examples.empty() ? use : Use::kUnknown);
}

std::vector<GradientCapture::Captured> GradientCapture::take() {
  std::vector<Captured> result(slots_.size());
  bool several = false;
  bool any = false;
  bool follows = follows_;
  for (auto& slot : slots_) {
    Captured& captured = result[slot->id];
    captured.why_not = slot->unknown;
    captured.why_no_examples = slot->why_no_examples;
    captured.backwards = slot->backwards;
    several = several || slot->repeated;
    const at::Tensor now = slot->parameter.grad();
    if (slot->backwards == 0 && slot->unknown.empty() && now.defined()) {
      captured.by_hand = true;
      if (keep_ == Keep::kNorm) {
        captured.norm_sq = squared_norm(now);
      } else if (keep_ != Keep::kNothing) {
        captured.gradient = now.detach();
      }
    }
    if (slot->replaced) {
      const bool used = !evaluates_ && slot->last_place != slot->now();
      // What was captured is the group that does not count: from the next step on it is the other.
      if (used != follows_) {
        slot->unknown = captured.why_not =
            "its first of several passes in a step counted, before it was known which one the "
            "optimizer uses";
      }
      follows = used;
    }
    if (slot->backwards > 0 && slot->unknown.empty()) {
      any = true;
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
  follows_ = follows;
  return result;
}

}  // namespace tycho
