#include "tycho/session.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "options.h"
#include "session/session_impl.h"

namespace tycho {

Session::Session(torch::nn::Module& model, torch::optim::Optimizer& optimizer,
                 SessionOptions options) {
  if (disabled_by_environment()) return;
  impl_ = std::make_unique<Impl>(std::make_unique<ModelState>(model), describe(model, optimizer),
                                 optimizer, std::move(options));
  impl_->begin();
}

Session::Session(torch::jit::Module& model, torch::optim::Optimizer& optimizer,
                 SessionOptions options) {
  if (disabled_by_environment()) return;
  impl_ = std::make_unique<Impl>(std::make_unique<ModelState>(model), describe(model, optimizer),
                                 optimizer, std::move(options));
  impl_->begin();
}

Session::~Session() {
  if (impl_) impl_->close();
}

void Session::add_probe(std::unique_ptr<Probe> probe, int64_t every) {
  if (!impl_ || !probe) return;
  impl_->protect([&] {
    if (!impl_->usable()) return;
    if (impl_->had_step || impl_->trace->begun()) {
      impl_->notice("probe_added_late",
                    "a probe was added after the first step: it is not observed");
      return;
    }
    try {
      ProbeSchedule schedule;
      if (every > 0) schedule.every = every;
      impl_->add(std::move(probe), schedule);
    } catch (const std::exception& error) {
      impl_->trace->print_once("probe_refused",
                               fmt::format("a probe was not added: {}", error.what()));
      return;
    }
    impl_->begin_again();
  });
}

void Session::set_probe_loss(std::function<at::Tensor()> probe_loss) {
  ProbeLoss loss;
  if (probe_loss) {
    loss.loss = [f = std::move(probe_loss)](const at::Tensor&, int64_t) { return f(); };
  }
  set_probe_loss(std::move(loss));
}

void Session::set_probe_loss(ProbeLoss probe_loss) {
  if (!impl_) return;
  impl_->change_losses([&] { return impl_->losses->set_probe(std::move(probe_loss)); });
}

void Session::set_step_loss(std::function<at::Tensor()> step_loss) {
  if (!impl_) return;
  impl_->change_losses([&] { return impl_->losses->set_step(std::move(step_loss)); });
}

void Session::set_batch_loss(std::function<at::Tensor(int64_t)> batch_loss) {
  if (!impl_) return;
  impl_->change_losses([&] { return impl_->losses->set_batches(std::move(batch_loss)); });
}

void Session::set_loss_scale(double scale) {
  if (!impl_) return;
  impl_->protect([&] {
    if (!impl_->usable()) return;
    if (!(scale > 0) || !std::isfinite(scale)) {
      impl_->notice("loss_scale_not_positive",
                    "the loss scale is not a positive number: it is ignored");
      return;
    }
    impl_->loss_scale = scale;
    if (impl_->hooked) impl_->observer->set_loss_scale(scale);
  });
}

void Session::step(const at::Tensor& loss, int64_t batch_size) {
  if (!impl_) return;
  impl_->protect([&] { impl_->step(&loss, 0, batch_size); });
}

void Session::step(double loss, int64_t batch_size) {
  if (!impl_) return;
  impl_->protect([&] { impl_->step(nullptr, loss, batch_size); });
}

Session::Pause::Pause(Session* session) : session_(session) {
  if (session_ == nullptr || !session_->impl_) return;
  session_->impl_->protect([&] { session_->impl_->set_paused(true); });
}

Session::Pause::Pause(Pause&& other) noexcept : session_(std::exchange(other.session_, nullptr)) {}

Session::Pause::~Pause() {
  if (session_ == nullptr || !session_->impl_) return;
  session_->impl_->protect([&] { session_->impl_->set_paused(false); });
}

Session::Pause Session::pause() { return Pause(this); }

void Session::close() {
  if (impl_) impl_->close();
}

}  // namespace tycho
