#include "operator_watch.h"

// Without NDEBUG, RecordFunction has one more member than in a release build of LibTorch.
#ifndef NDEBUG
#error "operator_watch.cpp must be compiled with NDEBUG"
#endif

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <string_view>

namespace tycho {
namespace {

struct ThreadState {
  std::vector<OperatorListener*> listeners;
  at::CallbackHandle handle = 0;
  int depth = 0;
  bool exclusive = false;  // the one listener sees operators without gradients too
};

thread_local ThreadState state;

struct Context : at::ObserverContext {
  std::vector<OperatorListener*> wants_outputs;
};

std::unique_ptr<at::ObserverContext> start(const at::RecordFunction& function) {
  auto context = std::make_unique<Context>();
  // Operators within operators, and within a node of a backward pass, are not the model's own.
  const bool outermost = state.depth++ == 0;
  if (!outermost || function.scope() != at::RecordScope::FUNCTION) return context;
  const std::string_view name = function.name();
  const bool in_place = !name.empty() && name.back() == '_';
  const bool recorded = at::GradMode::is_enabled() || state.exclusive;
  if (!recorded && !in_place) return context;
  const bool hidden_write = in_place && !recorded;
  at::NoGradGuard no_grad;
  at::DisableRecordFunctionGuard unobserved;
  // Boxed calls may show more of the stack than the operator's own arguments, which are the last.
  const auto inputs = function.inputs();
  const size_t count = std::min(inputs.size(), function.num_inputs());
  const auto own = inputs.slice(inputs.size() - count);
  for (OperatorListener* listener : state.listeners) {
    if (in_place && !own.empty()) listener->writes(own[0]);
    if (hidden_write) continue;
    if (listener->before(function.name(), own)) context->wants_outputs.push_back(listener);
  }
  return context;
}

void finish(const at::RecordFunction& function, at::ObserverContext* context) {
  --state.depth;
  auto* own = static_cast<Context*>(context);
  if (own == nullptr || own->wants_outputs.empty()) return;
  at::NoGradGuard no_grad;
  at::DisableRecordFunctionGuard unobserved;
  for (OperatorListener* listener : own->wants_outputs) {
    if (std::find(state.listeners.begin(), state.listeners.end(), listener) !=
        state.listeners.end()) {
      listener->after(function.outputs());
    }
  }
}

void install() {
  state.depth = 0;
  state.handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(&start, &finish)
          .needsInputs(true)
          .needsOutputs(true)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
}

}  // namespace

OperatorWatch::OperatorWatch(OperatorListener* listener) : listener_(listener) {
  state.listeners.push_back(listener);
  if (state.listeners.size() == 1) install();
}

OperatorWatch::~OperatorWatch() {
  auto& listeners = state.listeners;
  const auto found = std::find(listeners.begin(), listeners.end(), listener_);
  if (found == listeners.end())
    return;  // Ended on another thread: the callback stays, without listeners.
  listeners.erase(found);
  if (listeners.empty()) at::removeCallback(state.handle);
}

struct ExclusiveOperatorWatch::Saved {
  ThreadState watched;
  at::RecordFunctionTLS callbacks;
};

ExclusiveOperatorWatch::ExclusiveOperatorWatch(OperatorListener* listener)
    : saved_(std::make_unique<Saved>(Saved{state, at::get_record_function_tls_()})) {
  at::set_record_function_tls_({});
  state = ThreadState();
  state.listeners.push_back(listener);
  state.exclusive = true;
  install();
}

ExclusiveOperatorWatch::~ExclusiveOperatorWatch() {
  at::removeCallback(state.handle);
  state = saved_->watched;
  at::set_record_function_tls_(saved_->callbacks);
}

}  // namespace tycho
