#include "alert_sender.h"

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace tycho::analyzer {

bool AlertLimit::allows(const Alert& alert, Clock::time_point now) {
  for (auto entry = sent_.begin(); entry != sent_.end();)
    entry = now - entry->second >= same_alarm_ ? sent_.erase(entry) : std::next(entry);
  while (!times_.empty() && now - times_.front() >= std::chrono::minutes(1)) times_.pop_front();
  const char separator = '\n';
  const std::string key = alert.path + separator + alert.code + separator + alert.scope +
                          separator + to_string(alert.severity);
  if (sent_.count(key) > 0 || times_.size() >= per_minute_) return false;
  sent_.emplace(key, now);
  times_.push_back(now);
  return true;
}

/// Shared with the thread, which may be left behind.
struct AlertSender::State {
  State(std::unique_ptr<AlertHook> to, AlertSenderOptions with)
      : hook(std::move(to)), options(with), limit(with.same_alarm, with.per_minute) {}

  const std::unique_ptr<AlertHook> hook;
  const AlertSenderOptions options;
  mutable std::mutex mutex;
  std::condition_variable work;
  std::condition_variable ended;
  AlertLimit limit;
  std::deque<Alert> queue;
  AlertCounters counters;
  uint64_t left_out = 0;  // since an alert was let through
  std::optional<std::string> trouble;
  bool troubled = false;
  bool closing = false;
  bool cancelled = false;
  bool left_behind = false;  // nobody asks what becomes of the alert
  bool done = false;

  void run();
  void deliver_one(std::unique_lock<std::mutex>* lock);
  void note_trouble(const std::string& why) {
    if (troubled) return;
    troubled = true;
    trouble = "an alert could not be delivered to " + hook->name() + ": " + why;
  }
};

// The first of the queue, which stays there until it is settled.
void AlertSender::State::deliver_one(std::unique_lock<std::mutex>* lock) {
  const Alert alert = queue.front();
  std::chrono::milliseconds pause = options.first_pause;
  for (int attempt = 1;; ++attempt) {
    ++counters.attempts;
    lock->unlock();
    AlertHook::Outcome outcome;
    try {
      outcome = hook->deliver(alert);
    } catch (const std::exception& error) {
      outcome = {false, false, error.what()};
    }
    lock->lock();
    if (left_behind) return;
    if (cancelled && !outcome.delivered) {
      note_trouble(outcome.why);
      return;  // Counted with what still waits.
    }
    if (outcome.delivered) {
      ++counters.sent;
      break;
    }
    note_trouble(outcome.why);
    if (!outcome.try_again || attempt >= options.most_attempts) {
      ++counters.failed;
      break;
    }
    work.wait_for(*lock, pause, [this] { return cancelled; });
    if (cancelled) return;
    pause = std::min(2 * pause, options.longest_pause);
  }
  queue.pop_front();
}

void AlertSender::State::run() {
  std::unique_lock<std::mutex> lock(mutex);
  for (;;) {
    work.wait(lock, [this] { return closing || cancelled || !queue.empty(); });
    if (cancelled || queue.empty()) break;
    deliver_one(&lock);
  }
  counters.dropped += queue.size();
  queue.clear();
  done = true;
  ended.notify_all();
}

AlertSender::AlertSender(std::unique_ptr<AlertHook> hook, AlertSenderOptions options)
    : state_(std::make_shared<State>(std::move(hook), options)) {
  // A thread begins with the signals blocked that its maker has: none is for it, and a connection
  // that is closed makes no SIGPIPE.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread([state = state_] { state->run(); }).detach();
  } catch (...) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

AlertSender::~AlertSender() { close(std::chrono::milliseconds(0)); }

void AlertSender::send(Alert alert) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  State& state = *state_;
  if (state.closing) {
    ++state.counters.dropped;
    return;
  }
  if (!state.limit.allows(alert, AlertLimit::Clock::now())) {
    ++state.counters.left_out;
    ++state.left_out;
    return;
  }
  if (state.queue.size() >= state.options.most_waiting) {
    ++state.counters.dropped;
    state.note_trouble("too many alerts are waiting");
    return;
  }
  alert.left_out = std::exchange(state.left_out, 0);
  state.queue.push_back(std::move(alert));
  state.work.notify_all();
}

AlertCounters AlertSender::counters() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->counters;
}

std::optional<std::string> AlertSender::take_trouble() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return std::exchange(state_->trouble, std::nullopt);
}

void AlertSender::close(std::chrono::milliseconds patience) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  State& state = *state_;
  const auto is_done = [&state] { return state.done || state.left_behind; };
  state.closing = true;
  state.work.notify_all();
  if (state.ended.wait_for(lock, patience, is_done)) return;
  state.cancelled = true;
  state.work.notify_all();
  lock.unlock();
  state.hook->cancel();
  lock.lock();
  if (!state.ended.wait_for(lock, state.options.last_wait, is_done)) {
    state.left_behind = true;
    state.counters.dropped += state.queue.size();
    state.queue.clear();
  }
}

}  // namespace tycho::analyzer
