#include "backward_watch.h"

// Without NDEBUG, RecordFunction has one more member than in a release build of LibTorch.
#ifndef NDEBUG
#error "backward_watch.cpp must be compiled with NDEBUG"
#endif

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>
#include <vector>

namespace tycho {

struct BackwardWatch::Registration {
  std::mutex mutex;
  BackwardListener* listener;
};

struct BackwardWatch::Registry {
  std::mutex mutex;
  std::vector<std::shared_ptr<Registration>> registrations;
  at::CallbackHandle handle = 0;
  std::atomic<uint64_t> generation{0};  // changes with every watch that begins

  static std::unique_ptr<at::ObserverContext> start(const at::RecordFunction& function);
  void pass_begins();
};

BackwardWatch::Registry& BackwardWatch::registry() {
  static auto* const registry = new Registry();  // Outlives the engine's threads.
  return *registry;
}

/// Nodes run in descending order of their numbers, so that a number that is not smaller than the
/// one before begins a pass. Accumulators of gradients have none that fits.
std::unique_ptr<at::ObserverContext> BackwardWatch::Registry::start(
    const at::RecordFunction& function) {
  thread_local int64_t last = -1;
  thread_local uint64_t seen = 0;
  const int64_t number = function.seqNr();
  Registry& all = registry();
  const uint64_t generation = all.generation.load(std::memory_order_acquire);
  const bool begins = number >= last || seen != generation;
  if (number >= 0) last = number;
  if (!begins || number < 0) return nullptr;
  seen = generation;
  all.pass_begins();
  return nullptr;
}

void BackwardWatch::Registry::pass_begins() {
  std::vector<std::shared_ptr<Registration>> told;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    told = registrations;
  }
  const at::NoGradGuard no_grad;
  const at::DisableRecordFunctionGuard unobserved;
  for (const auto& registration : told) {
    const std::lock_guard<std::mutex> lock(registration->mutex);
    if (registration->listener != nullptr) registration->listener->backward_begins();
  }
}

BackwardWatch::BackwardWatch(BackwardListener* listener)
    : registration_(std::make_shared<Registration>()) {
  registration_->listener = listener;
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.registrations.empty()) {
    all.handle = at::addGlobalCallback(
        at::RecordFunctionCallback(&Registry::start).scopes({at::RecordScope::BACKWARD_FUNCTION}));
  }
  all.registrations.push_back(registration_);
  all.generation.fetch_add(1, std::memory_order_release);
}

BackwardWatch::~BackwardWatch() {
  Registry& all = registry();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    auto& registrations = all.registrations;
    registrations.erase(std::find(registrations.begin(), registrations.end(), registration_));
    try {
      if (registrations.empty()) at::removeCallback(all.handle);
    } catch (const std::exception&) {
      all.handle = 0;  // Memory is out: the callback stays, and finds nobody to tell.
    }
  }
  const std::lock_guard<std::mutex> lock(registration_->mutex);
  registration_->listener = nullptr;
}

}  // namespace tycho
