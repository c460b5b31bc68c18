#include "tycho/trace/background_writer.h"

#include <pthread.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace tycho::trace {
namespace {

// Waking for each message takes a processor from the trainer; so long the thread gathers them.
constexpr std::chrono::milliseconds kGather(10);
// How often a chunk that waits is looked at: several times in half a second (RunWriterOptions).
constexpr std::chrono::milliseconds kTick(100);

}  // namespace

struct BackgroundWriter::Impl {
  std::unique_ptr<RunWriter> writer;
  QueuePolicy policy;
  size_t capacity;

  mutable std::mutex mutex;
  std::condition_variable work;   // the thread waits for messages
  std::condition_variable space;  // producers wait for space or for a flush
  std::vector<std::pair<QueuedMessage, size_t>> queue;
  size_t queued_bytes = 0;
  uint64_t flush_wanted = 0;
  uint64_t flush_done = 0;
  Status flush_status;
  bool stopping = false;
  bool stopped = false;
  std::atomic<bool> abandoned{false};
  uint64_t dropped = 0;
  Counters counters;
  uint64_t exceptions = 0;    // that left the writer
  uint64_t lost_to_them = 0;  // messages
  std::string last_exception;
  Status close_status;
  double cpu_at_end = 0;
  std::optional<QueuedMessage> owed;  // a model that could not be written; the thread's own
  std::shared_ptr<const Listener> listener;
  std::thread thread;

  static double seconds_of(clockid_t clock) {
    timespec now{};
    if (::clock_gettime(clock, &now) != 0) return 0;
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  static size_t size_of(const QueuedMessage& message) {
    return std::visit(
               [](const auto& m) {
                 if constexpr (std::is_same_v<std::decay_t<decltype(m)>, StepEnd>) {
                   return sizeof(m);
                 } else {
                   return m.ByteSizeLong();
                 }
               },
               message.message) +
           message.probe.size() + sizeof(QueuedMessage);
  }

  void store(const QueuedMessage& message) {
    std::visit(
        [&](const auto& m) {
          using Message = std::decay_t<decltype(m)>;
          if constexpr (std::is_same_v<Message, v1::Record>) {
            writer->write(message.probe, m, message.time_ns);
          } else if constexpr (!std::is_same_v<Message, StepEnd>) {
            writer->write(m, message.time_ns);
          }
        },
        message.message);
  }

  /// What comes after a model that could not be written has ids that nobody could read: that is
  /// tried first.
  Status take(const QueuedMessage& message) {
    const auto attempt = [this](const QueuedMessage& stored) {
      return contain([&] {
        store(stored);
        return Status();
      });
    };
    const auto pay = [&] {
      if (!owed) return Status();
      Status status = attempt(*owed);
      if (status.ok()) owed.reset();
      return status;
    };
    if (std::holds_alternative<StepEnd>(message.message)) return Status();
    if (std::holds_alternative<v1::ModelDescription>(message.message)) {
      if (Status status = contain([&] {
            owed = message;
            return Status();
          });
          !status.ok())
        return status;
      return pay();
    }
    if (Status status = pay(); !status.ok()) return status;
    return attempt(message);
  }

  // With the lock held.
  bool urgent() const {
    return stopping || flush_wanted > flush_done || queued_bytes >= capacity / 2;
  }

  // With the lock held.
  void update_counters() {
    counters.messages_written = writer->messages_written();
    counters.messages_dropped = dropped + writer->messages_lost() + lost_to_them;
    counters.bytes_written = writer->bytes_written();
    counters.write_failures = writer->write_failures() + exceptions;
    counters.last_failure = exceptions > 0 ? last_exception : writer->last_failure().message();
  }

  // An exception that left this thread (memory is out) would end the training process. Without the
  // lock; only this thread writes these.
  template <typename Action>
  Status contain(const Action& action) {
    std::string what;
    try {
      return action();
    } catch (const std::exception& error) {
      what = error.what();
    } catch (...) {
      what = "an exception that is no std::exception";
    }
    std::lock_guard lock(mutex);
    ++exceptions;
    last_exception = "the writer failed: " + what;
    return Status(Status::Code::kIoError, last_exception);
  }

  void run() {
    std::unique_lock lock(mutex);
    while (true) {
      work.wait_for(lock, kTick,
                    [&] { return !queue.empty() || stopping || flush_wanted > flush_done; });
      if (!queue.empty()) work.wait_for(lock, kGather, [&] { return urgent(); });
      while (!queue.empty()) {
        std::vector<std::pair<QueuedMessage, size_t>> batch;
        batch.swap(queue);  // Allocates nothing: an exception here would end the process.
        const std::shared_ptr<const Listener> hearing = listener;
        lock.unlock();
        size_t freed = 0;
        uint64_t lost = 0;
        for (auto& entry : batch) {
          lost += take(entry.first).ok() ? 0 : 1;
          freed += entry.second;
          if (hearing) (*hearing)(std::move(entry.first));
          if (freed < capacity / 8 && &entry != &batch.back()) continue;
          const std::lock_guard relock(mutex);
          lost_to_them += std::exchange(lost, 0);
          queued_bytes -= std::exchange(freed, 0);
          update_counters();
          space.notify_all();
        }
        lock.lock();
      }
      if (flush_wanted > flush_done) {
        const uint64_t upto = flush_wanted;
        lock.unlock();
        Status status = contain([&] { return writer->flush(); });
        lock.lock();
        flush_status = status;
        flush_done = upto;
        update_counters();
        space.notify_all();
        continue;
      }
      if (stopping) break;
      lock.unlock();
      (void)contain([&] {
        writer->tick();
        return Status();
      });
      lock.lock();
      update_counters();
    }
    lock.unlock();
    Status status = contain([&] { return writer->close(); });
    lock.lock();
    close_status = status;
    update_counters();
    cpu_at_end = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    stopped = true;
    space.notify_all();
  }
};

BackgroundWriter::BackgroundWriter(std::unique_ptr<RunWriter> writer, QueuePolicy policy,
                                   size_t capacity_bytes)
    : impl_(std::make_unique<Impl>()) {
  impl_->writer = std::move(writer);
  impl_->policy = policy;
  impl_->capacity = capacity_bytes;
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

BackgroundWriter::~BackgroundWriter() {
  if (impl_->abandoned) {
    impl_->thread.detach();
    (void)
        impl_.release();  // Its thread, and whatever lock that held, stayed in the parent process.
    return;
  }
  (void)close();
}

bool BackgroundWriter::push(QueuedMessage message) try {
  if (impl_->abandoned) return false;
  const size_t size = Impl::size_of(message);
  std::unique_lock lock(impl_->mutex);
  // One message larger than the whole queue is taken when the queue is empty.
  const bool needed = std::holds_alternative<v1::ModelDescription>(message.message);
  const auto fits = [&] {
    return needed || impl_->queued_bytes == 0 || impl_->queued_bytes + size <= impl_->capacity;
  };
  if (impl_->policy == QueuePolicy::kBlock) {
    impl_->space.wait(lock, [&] { return fits() || impl_->stopping; });
  }
  if (impl_->stopping || !fits()) {
    if (std::holds_alternative<StepEnd>(message.message)) return false;
    ++impl_->dropped;
    ++impl_->counters.messages_dropped;
    return false;
  }
  const bool was_empty = impl_->queue.empty();
  impl_->queue.emplace_back(std::move(message), size);
  impl_->queued_bytes += size;
  const bool wake = was_empty || impl_->queued_bytes >= impl_->capacity / 2;
  lock.unlock();
  if (wake) impl_->work.notify_one();
  return true;
} catch (const std::exception&) {  // Memory is out.
  const std::lock_guard lock(impl_->mutex);
  ++impl_->dropped;
  ++impl_->counters.messages_dropped;
  return false;
}

void BackgroundWriter::set_listener(Listener listener) {
  if (impl_->abandoned) return;
  std::shared_ptr<const Listener> hearing;
  if (listener) hearing = std::make_shared<const Listener>(std::move(listener));
  const std::lock_guard lock(impl_->mutex);
  impl_->listener.swap(hearing);
}

Status BackgroundWriter::flush() {
  if (impl_->abandoned) return Status();
  std::unique_lock lock(impl_->mutex);
  if (impl_->stopping) return Status();
  const uint64_t ticket = ++impl_->flush_wanted;
  impl_->work.notify_one();
  impl_->space.wait(lock, [&] { return impl_->flush_done >= ticket || impl_->stopped; });
  return impl_->flush_status;
}

Status BackgroundWriter::close() {
  if (impl_->abandoned) return Status();
  {
    std::unique_lock lock(impl_->mutex);
    impl_->stopping = true;
    impl_->work.notify_one();
    impl_->space.notify_all();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
  std::unique_lock lock(impl_->mutex);
  return impl_->close_status;
}

BackgroundWriter::Counters BackgroundWriter::counters() const {
  if (impl_->abandoned) return {};
  std::unique_lock lock(impl_->mutex);
  return impl_->counters;
}

double BackgroundWriter::cpu_seconds() const {
  if (impl_->abandoned) return 0;
  // With the lock held the thread does not end.
  const std::lock_guard lock(impl_->mutex);
  if (impl_->stopped) return impl_->cpu_at_end;
  clockid_t clock{};
  if (::pthread_getcpuclockid(impl_->thread.native_handle(), &clock) != 0) return 0;
  return Impl::seconds_of(clock);
}

void BackgroundWriter::abandon() noexcept { impl_->abandoned = true; }

}  // namespace tycho::trace
