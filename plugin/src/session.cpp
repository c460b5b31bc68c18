#include "tycho/session.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <utility>

#include "options.h"
#include "session/session_impl.h"

namespace tycho {

namespace {

/// What fails but is no fault of the options does not stop training.
template <typename Make>
auto made(const Make& make) -> decltype(make()) {
  try {
    if (disabled_by_environment()) return nullptr;
    auto impl = make();
    impl->begin();
    return impl;
  } catch (const OptionError&) {
    throw;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tycho: the session could not be made and observes nothing: %s\n",
                 error.what());
  }
  return nullptr;
}

Optimizers checked(std::vector<torch::optim::Optimizer*> optimizers) {
  if (optimizers.empty()) throw OptionError("tycho: there is no optimizer");
  for (const torch::optim::Optimizer* optimizer : optimizers) {
    if (optimizer == nullptr) throw OptionError("tycho: an optimizer is null");
  }
  return Optimizers(std::move(optimizers));
}

/// A module that contains the others, which it does not own.
std::shared_ptr<torch::nn::Module> joint_module(
    const std::vector<std::pair<std::string, torch::nn::Module*>>& modules) {
  auto joint = std::make_shared<torch::nn::Module>();
  for (const auto& [name, module] : modules) {
    if (module == nullptr) throw OptionError(fmt::format("tycho: module \"{}\" is null", name));
    if (name.empty() || name.find('.') != std::string::npos ||
        joint->named_children().contains(name)) {
      throw OptionError(
          fmt::format("tycho: module \"{}\": a unique name without dots is expected", name));
    }
    joint->register_module(
        name, std::shared_ptr<torch::nn::Module>(std::shared_ptr<torch::nn::Module>(), module));
  }
  return joint;
}

}  // namespace

Session::Session(torch::nn::Module& model, torch::optim::Optimizer& optimizer,
                 SessionOptions options) {
  impl_ = made([&] {
    auto books = std::make_unique<CostBooks>();
    return std::make_shared<Impl>(std::move(books), std::make_unique<ModelState>(model),
                                  source_of(model, optimizer), optimizer, std::move(options));
  });
}

Session::Session(torch::jit::Module& model, torch::optim::Optimizer& optimizer,
                 SessionOptions options) {
  impl_ = made([&] {
    auto books = std::make_unique<CostBooks>();
    return std::make_shared<Impl>(std::move(books), std::make_unique<ModelState>(model),
                                  source_of(model, optimizer), optimizer, std::move(options));
  });
}

Session::Session(torch::nn::Module& model, std::vector<torch::optim::Optimizer*> optimizers,
                 SessionOptions options) {
  impl_ = made([&] {
    auto books = std::make_unique<CostBooks>();
    const Optimizers all = checked(std::move(optimizers));
    return std::make_shared<Impl>(std::move(books), std::make_unique<ModelState>(model),
                                  source_of(model, all), all, std::move(options));
  });
}

Session::Session(std::vector<std::pair<std::string, torch::nn::Module*>> modules,
                 std::vector<torch::optim::Optimizer*> optimizers, SessionOptions options) {
  impl_ = made([&] {
    auto books = std::make_unique<CostBooks>();
    const Optimizers all = checked(std::move(optimizers));
    const auto joint = joint_module(modules);
    auto impl = std::make_shared<Impl>(std::move(books), std::make_unique<ModelState>(*joint),
                                       source_of(*joint, all), all, std::move(options));
    impl->joint = joint;
    return impl;
  });
}

Session::Session(std::vector<at::Tensor> parameters, torch::optim::Optimizer& optimizer,
                 SessionOptions options)
    : Session(std::move(parameters), std::vector<torch::optim::Optimizer*>{&optimizer},
              std::move(options)) {}

Session::Session(std::vector<at::Tensor> parameters,
                 std::vector<torch::optim::Optimizer*> optimizers, SessionOptions options) {
  impl_ = made([&] {
    auto books = std::make_unique<CostBooks>();
    const Optimizers all = checked(std::move(optimizers));
    const auto joint = std::make_shared<torch::nn::Module>();
    auto impl = std::make_shared<Impl>(std::move(books), std::make_unique<ModelState>(*joint),
                                       source_of(parameters, all), all, std::move(options));
    impl->joint = joint;
    return impl;
  });
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
  if (!impl_) return;
  impl_->change_losses([&] {
    ProbeLoss loss;
    if (probe_loss) {
      loss.loss = [f = std::move(probe_loss)](const at::Tensor&, int64_t) { return f(); };
    }
    return impl_->losses->set_probe(std::move(loss));
  });
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
  // A loss that is evaluated may destroy this session.
  const std::shared_ptr<Impl> impl = impl_;
  if (impl) impl->protect([&] { impl->step(&loss, 0, batch_size); });
}

void Session::step(double loss, int64_t batch_size) {
  const std::shared_ptr<Impl> impl = impl_;
  if (impl) impl->protect([&] { impl->step(nullptr, loss, batch_size); });
}

void Session::validation(const at::Tensor& loss) {
  const std::shared_ptr<Impl> impl = impl_;
  if (!impl) return;
  impl->protect([&] {
    if (loss.defined() && loss.numel() == 1) {
      impl->validation(loss.detach().to(at::kDouble).item<double>());
    } else {
      impl->notice("validation_loss_not_scalar",
                   "a loss given to Session::validation is not a scalar: it is not recorded");
    }
  });
}

void Session::validation(double loss) {
  const std::shared_ptr<Impl> impl = impl_;
  if (impl) impl->protect([&] { impl->validation(loss); });
}

Session::Pause::Pause(Session* session) : session_(session) {
  if (session_ == nullptr || !session_->impl_) return;
  if (!session_->impl_->protect([&] { session_->impl_->set_paused(true); })) session_ = nullptr;
}

Session::Pause::Pause(Pause&& other) noexcept : session_(std::exchange(other.session_, nullptr)) {}

Session::Pause::~Pause() {
  if (session_ == nullptr || !session_->impl_) return;
  session_->impl_->protect([&] { session_->impl_->set_paused(false); });
}

Session::Pause Session::pause() { return Pause(this); }

std::string Session::directory() const { return impl_ ? impl_->directory->path() : std::string(); }

void Session::close() {
  if (!impl_) return;
  if (impl_->live && impl_->live->on_its_thread()) {
    // A call of the trainer's may be running: its next one ends the run.
    impl_->close_wanted = true;
    return;
  }
  impl_->close();
}

}  // namespace tycho
