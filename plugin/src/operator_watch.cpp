#include "operator_watch.h"

// Without NDEBUG, RecordFunction has one more member than in a release build of LibTorch.
#ifndef NDEBUG
#error "operator_watch.cpp must be compiled with NDEBUG"
#endif

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>

namespace tycho {

/// A callback belongs to the thread that added it and cannot be removed by another one: what that
/// thread keeps must outlive the watch.
struct OperatorWatch::Registration {
  std::mutex mutex;
  OperatorListener* listener;  // nullptr: the watch has ended
  WorkMeter* meter;
  const std::thread::id thread = std::this_thread::get_id();
};

namespace {

using Registration = OperatorWatch::Registration;

constexpr std::string_view kBackward = "aten::_backward";

std::shared_ptr<Registration> register_listener(OperatorListener* listener, WorkMeter* meter) {
  auto registration = std::make_shared<Registration>();
  registration->listener = listener;
  registration->meter = meter;
  return registration;
}

struct ThreadState {
  std::vector<std::shared_ptr<Registration>> listeners;
  at::CallbackHandle handle = 0;
  bool inside =
      false;  // an operator, or a node of a backward pass, whose own operators do not count
  bool exclusive = false;  // the one listener sees operators without gradients too
};

thread_local ThreadState state;

// Of an outermost operator; inner ones have none.
struct Context : at::ObserverContext {
  std::vector<std::shared_ptr<Registration>> wants_outputs;
  bool quiet = false;  // nothing within it is observed
};

// Turning the observation of operators off and on again takes LibTorch microseconds: where nobody
// else would see the listeners' operators, `state.inside` is enough.
bool others_watch() {
  return at::get_record_function_tls_().sorted_tls_callbacks_.size() > 1 ||
         at::hasGlobalCallbacks();
}

class Unobserved {
 public:
  Unobserved() {
    if (others_watch()) guard_.emplace(false);
  }

 private:
  at::NoGradGuard no_grad_;
  std::optional<at::RecordFunctionGuard> guard_;
};

/// Forgets watches that ended on other threads; the callback too, where none is left. Where memory
/// runs out the callback stays, and is used again.
void forget_ended() noexcept {
  auto& listeners = state.listeners;
  const auto ended = [](const std::shared_ptr<Registration>& registration) {
    const std::lock_guard<std::mutex> lock(registration->mutex);
    return registration->listener == nullptr;
  };
  listeners.erase(std::remove_if(listeners.begin(), listeners.end(), ended), listeners.end());
  if (!listeners.empty() || state.exclusive || state.handle == 0) return;
  try {
    at::removeCallback(state.handle);
    state.handle = 0;
  } catch (const std::exception&) {
    return;
  }
}

std::unique_ptr<at::ObserverContext> start(const at::RecordFunction& function) {
  // Operators within operators, and within a node of a backward pass, are not the model's own.
  if (state.inside) return nullptr;
  auto context = std::make_unique<Context>();
  context->wants_outputs.reserve(state.listeners.size());
  // Nothing below throws: without a context the end of the operator would not be told.
  state.inside = true;
  if (function.scope() != at::RecordScope::FUNCTION) return context;
  const std::string_view name = function.name();
  const bool in_place = !name.empty() && name.back() == '_';
  const bool recorded = at::GradMode::is_enabled() || state.exclusive;
  if (name == kBackward && !others_watch()) {
    context->quiet = true;
    at::enableRecordFunction(false);
    return context;
  }
  if (!recorded && !in_place) return context;
  const bool hidden_write = in_place && !recorded;
  const Unobserved unobserved;
  // Boxed calls may show more of the stack than the operator's own arguments, which are the last.
  const auto inputs = function.inputs();
  const size_t count = std::min(inputs.size(), function.num_inputs());
  const auto own = inputs.slice(inputs.size() - count);
  bool any_ended = false;
  for (const auto& registration : state.listeners) {
    const std::lock_guard<std::mutex> lock(registration->mutex);
    OperatorListener* listener = registration->listener;
    any_ended = any_ended || listener == nullptr;
    if (listener == nullptr) continue;
    const WorkMeter::Stretch stretch(registration->meter);
    try {
      if (in_place && !own.empty()) listener->writes(own[0]);
      if (hidden_write) continue;
      if (listener->before_call(function, own)) context->wants_outputs.push_back(registration);
    } catch (const std::exception&) {
      continue;  // Memory is out: this listener misses an operator.
    }
  }
  if (any_ended) forget_ended();
  return context;
}

void finish(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  auto* own = static_cast<Context*>(context);
  if (own->quiet) at::enableRecordFunction(true);
  struct Outside {
    ~Outside() { state.inside = false; }
  } const outside;
  if (!own->wants_outputs.empty()) {
    const Unobserved unobserved;
    for (const auto& registration : own->wants_outputs) {
      const std::lock_guard<std::mutex> lock(registration->mutex);
      if (registration->listener == nullptr) continue;
      const WorkMeter::Stretch stretch(registration->meter);
      registration->listener->after(function.outputs());
    }
  }
}

void install() {
  state.inside = false;
  if (state.handle != 0) return;
  state.handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(&start, &finish)
          .needsInputs(true)
          .needsOutputs(true)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
}

}  // namespace

bool OperatorListener::before_call(const at::RecordFunction& call,
                                   c10::ArrayRef<const c10::IValue> inputs) {
  return before(call.name(), inputs);
}

OperatorWatch::OperatorWatch(OperatorListener* listener, WorkMeter* meter)
    : registration_(register_listener(listener, meter)) {
  state.listeners.push_back(registration_);
  try {
    if (state.listeners.size() == 1 || state.handle == 0) install();
  } catch (...) {
    state.listeners.pop_back();
    throw;
  }
}

OperatorWatch::~OperatorWatch() {
  {
    const std::lock_guard<std::mutex> lock(registration_->mutex);
    registration_->listener = nullptr;
  }
  // Another thread forgets it at its next operator.
  if (on_this_thread()) forget_ended();
}

bool OperatorWatch::on_this_thread() const {
  return registration_->thread == std::this_thread::get_id();
}

struct ExclusiveOperatorWatch::Saved {
  ThreadState watched;
  at::RecordFunctionTLS callbacks;
};

ExclusiveOperatorWatch::ExclusiveOperatorWatch(OperatorListener* listener)
    : saved_(std::make_unique<Saved>(Saved{state, at::get_record_function_tls_()})) {
  ThreadState exclusive;
  exclusive.listeners.push_back(register_listener(listener, nullptr));
  exclusive.exclusive = true;
  at::RecordFunctionTLS none;
  try {
    at::set_record_function_tls_(none);
    state = std::move(exclusive);
    install();
  } catch (...) {
    restore();
    throw;
  }
}

void ExclusiveOperatorWatch::restore() noexcept {
  std::swap(state, saved_->watched);
  constexpr int kAttempts = 3;
  for (int i = 0; i < kAttempts; ++i) {
    try {
      return at::set_record_function_tls_(saved_->callbacks);
    } catch (const std::exception&) {
      continue;  // It copies them, and memory is out.
    }
  }
  state.handle = 0;  // The next watch installs it anew.
}

ExclusiveOperatorWatch::~ExclusiveOperatorWatch() { restore(); }

}  // namespace tycho
