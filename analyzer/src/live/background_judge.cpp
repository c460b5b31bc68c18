#include "tycho/analyzer/background_judge.h"

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <utility>
#include <variant>

#include "tycho/analyzer/live_judge.h"

namespace tycho::analyzer {
namespace {

double seconds_of(clockid_t clock) {
  timespec now{};
  if (::clock_gettime(clock, &now) != 0) return 0;
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

size_t size_of(const trace::QueuedMessage& message) {
  return std::visit(
             [](const auto& each) {
               if constexpr (std::is_same_v<std::decay_t<decltype(each)>, trace::StepEnd>) {
                 return sizeof(each);
               } else {
                 return each.ByteSizeLong();
               }
             },
             message.message) +
         message.probe.size() + sizeof(message);
}

template <typename Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const std::exception& error) {
    const std::string what = error.what();
    return what.empty() ? "an exception" : what;
  } catch (...) {
    return "an exception that is no std::exception";
  }
  return "";
}

}  // namespace

/// Shared with the thread, which may outlive the judge by the call of a listener that closed it.
struct BackgroundJudge::State {
  using Findings = std::vector<LiveFinding>;
  using Listeners = std::vector<Listener>;

  Options options;
  Segment segment;
  std::thread thread;
  std::atomic<std::thread::id> id{};
  std::atomic<bool> abandoned{false};

  mutable std::mutex mutex;
  std::condition_variable work;
  std::condition_variable ended;
  std::deque<std::pair<trace::QueuedMessage, size_t>> queue;
  size_t queued_bytes = 0;
  int64_t newest_step = -1;  // of a record that was pushed
  bool leaving_out = false;  // the records of that step
  /// The newest of each kind that waits for room: what comes later means nothing without them.
  std::optional<trace::QueuedMessage> model, structure, settings;
  bool stopping = false;
  bool gone = false;  // nobody is called any more
  bool done = false;
  double cpu_at_end = 0;
  Counters counters;
  std::shared_ptr<const Listeners> listeners = std::make_shared<Listeners>();
  std::shared_ptr<const Findings> published = std::make_shared<Findings>();

  // With the lock held.
  bool full(size_t more) const {
    return queued_bytes > 0 && queued_bytes + more > options.capacity_bytes;
  }
  void enqueue(trace::QueuedMessage message, size_t size) {
    queue.emplace_back(std::move(message), size);
    queued_bytes += size;
  }
  void enqueue_waiting() {
    for (auto* waiting : {&model, &structure, &settings}) {
      if (!*waiting) continue;
      const size_t size = size_of(**waiting);
      enqueue(std::move(**waiting), size);
      waiting->reset();
    }
  }
  void fail(std::string why) {
    counters.failure = std::move(why);
    queue.clear();
    queued_bytes = 0;
  }
  bool takes_step(int64_t step, size_t size) {
    if (step != newest_step) {
      const bool room = !full(leaving_out ? size + options.capacity_bytes / 2 : size);
      newest_step = step;
      leaving_out = !room;
      if (leaving_out) ++counters.steps_left_out;
    }
    return !leaving_out;
  }
  void accept(trace::QueuedMessage message, size_t size);

  // On the thread.
  static void run(const std::shared_ptr<State>& state);
  void judge_all();
  void judge_one(const trace::QueuedMessage& message);
  void publish();
  void tell(const LiveFinding& finding);

  std::unique_ptr<LiveJudge> judge;
  uint64_t version = 0;  // of what is published
};

void BackgroundJudge::State::accept(trace::QueuedMessage message, size_t size) {
  if (const auto* record = std::get_if<v1::Record>(&message.message)) {
    if (!takes_step(record->step(), size)) return;
  } else if (const auto* end = std::get_if<trace::StepEnd>(&message.message)) {
    if (leaving_out || end->step != newest_step) return;
  } else if (full(size)) {
    if (std::holds_alternative<v1::ModelDescription>(message.message)) {
      model = std::move(message);
      structure.reset();
      settings.reset();
    } else if (std::holds_alternative<v1::ModelStructure>(message.message)) {
      structure = std::move(message);
    } else if (std::holds_alternative<v1::OptimizerSettings>(message.message)) {
      settings = std::move(message);
    } else if (std::holds_alternative<v1::Event>(message.message) &&
               queued_bytes < 2 * options.capacity_bytes) {
      enqueue(std::move(message), size);  // Each comes once; some are alarms.
    }
    return;
  }
  enqueue_waiting();
  enqueue(std::move(message), size);
}

void BackgroundJudge::State::tell(const LiveFinding& finding) {
  publish();  // A listener may ask what else is known.
  std::shared_ptr<const Listeners> hearing;
  {
    const std::lock_guard lock(mutex);
    hearing = listeners;
  }
  for (const Listener& listener : *hearing) {
    {
      const std::lock_guard lock(mutex);
      if (gone) return;
    }
    std::string error = error_of([&] { listener(finding); });
    if (error.empty()) continue;
    const std::lock_guard lock(mutex);
    if (counters.listener_exceptions++ == 0) counters.listener_exception = std::move(error);
  }
}

void BackgroundJudge::State::publish() {
  if (judge->version() == version) return;
  version = judge->version();
  auto now = std::make_shared<const Findings>(judge->last_findings());
  const std::lock_guard lock(mutex);
  published.swap(now);
}

void BackgroundJudge::State::judge_one(const trace::QueuedMessage& message) {
  std::visit(
      [&](const auto& each) {
        using Message = std::decay_t<decltype(each)>;
        if constexpr (std::is_same_v<Message, v1::Record>) {
          judge->on_record(message.probe, each, message.time_ns);
        } else if constexpr (std::is_same_v<Message, v1::OptimizerSettings>) {
          judge->on_optimizer(each, message.time_ns);
        } else if constexpr (std::is_same_v<Message, v1::Event>) {
          judge->on_event(each, message.time_ns);
        } else if constexpr (std::is_same_v<Message, v1::Health>) {
          judge->on_health(each, message.time_ns);
        } else if constexpr (std::is_same_v<Message, v1::ModelStructure>) {
          judge->on_structure(each, message.time_ns);
        } else if constexpr (std::is_same_v<Message, v1::ModelDescription>) {
          judge->on_segment(trace::SegmentInfo(), segment.run, each, segment.registry);
        } else if constexpr (std::is_same_v<Message, trace::StepEnd>) {
          judge->finish_step();
        }
      },
      message.message);
}

void BackgroundJudge::State::judge_all() {
  judge = std::make_unique<LiveJudge>([this](const LiveFinding& finding) { tell(finding); });
  trace::SegmentInfo info;
  info.resumed = segment.run.resumed();
  judge->on_segment(info, segment.run, segment.model, segment.registry);
  while (true) {
    std::pair<trace::QueuedMessage, size_t> next;
    {
      std::unique_lock lock(mutex);
      work.wait(lock, [&] { return !queue.empty() || stopping || gone; });
      if (gone) return;
      if (queue.empty()) break;
      next = std::move(queue.front());
      queue.pop_front();
    }
    judge_one(next.first);
    publish();
    const std::lock_guard lock(mutex);
    queued_bytes -= std::min(next.second, queued_bytes);
  }
  judge->finish();
  publish();
}

void BackgroundJudge::State::run(const std::shared_ptr<State>& state) {
  state->id = std::this_thread::get_id();
  std::string error = error_of([&] { state->judge_all(); });
  // A map of protobuf's that could not grow must not be destroyed.
  if (!error.empty()) (void)state->judge.release();
  state->judge.reset();
  const std::lock_guard lock(state->mutex);
  if (!error.empty()) state->fail(std::move(error));
  state->cpu_at_end = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  state->id = std::thread::id();
  state->done = true;
  state->ended.notify_all();
}

BackgroundJudge::BackgroundJudge(Segment segment, Options options)
    : state_(std::make_shared<State>()) {
  state_->options = options;
  state_->segment = std::move(segment);
  state_->thread = std::thread([state = state_] { State::run(state); });
}

BackgroundJudge::~BackgroundJudge() { close(); }

void BackgroundJudge::add_listener(Listener listener) {
  if (state_->abandoned || !listener) return;
  const std::lock_guard lock(state_->mutex);
  if (state_->stopping) return;
  auto more = std::make_shared<State::Listeners>(*state_->listeners);
  more->push_back(std::move(listener));
  state_->listeners = std::move(more);
}

void BackgroundJudge::push(trace::QueuedMessage message) noexcept {
  State& state = *state_;
  if (state.abandoned) return;
  try {
    const size_t size = size_of(message);
    const std::lock_guard lock(state.mutex);
    if (state.stopping || !state.counters.failure.empty()) return;
    state.accept(std::move(message), size);
    // With the lock held: after it, a listener may have destroyed the judge.
    state.work.notify_one();
  } catch (...) {
    const std::lock_guard lock(state.mutex);
    state.fail("memory is out");
    state.gone = true;
    state.work.notify_one();
  }
}

std::vector<LiveFinding> BackgroundJudge::findings() const {
  if (state_->abandoned) return {};
  std::shared_ptr<const State::Findings> now;
  {
    const std::lock_guard lock(state_->mutex);
    now = state_->published;
  }
  return *now;
}

Verdict BackgroundJudge::verdict(const std::string& law) const {
  if (state_->abandoned) return Verdict::kNotYet;
  std::shared_ptr<const State::Findings> now;
  {
    const std::lock_guard lock(state_->mutex);
    now = state_->published;
  }
  for (const LiveFinding& finding : *now) {
    if (finding.kind == LiveFinding::Kind::kVerdict && finding.law == law && finding.scope == "run")
      return finding.verdict;
  }
  return Verdict::kNotYet;
}

BackgroundJudge::Counters BackgroundJudge::counters() const {
  if (state_->abandoned) return {};
  const std::lock_guard lock(state_->mutex);
  return state_->counters;
}

bool BackgroundJudge::on_its_thread() const {
  return state_->id.load() == std::this_thread::get_id();
}

double BackgroundJudge::cpu_seconds() const {
  if (state_->abandoned) return 0;
  // With the lock held the thread does not end.
  const std::lock_guard lock(state_->mutex);
  clockid_t clock{};
  if (state_->done || !state_->thread.joinable()) return state_->cpu_at_end;
  if (::pthread_getcpuclockid(state_->thread.native_handle(), &clock) != 0) return 0;
  return seconds_of(clock);
}

void BackgroundJudge::close() {
  State& state = *state_;
  if (state.abandoned) return;
  std::shared_ptr<const State::Listeners> gone;
  std::thread ending;
  {
    std::unique_lock lock(state.mutex);
    state.stopping = true;
    state.work.notify_one();
    if (on_its_thread()) {
      state.gone = true;
    } else if (!state.ended.wait_for(lock, state.options.patience, [&] { return state.done; })) {
      state.gone = true;
      if (state.counters.failure.empty()) state.counters.failure = "a listener does not return";
    }
    gone.swap(state.listeners);
    state.listeners = std::make_shared<State::Listeners>();
    state.work.notify_one();
    if (!state.thread.joinable()) return;
    if (state.done) {
      ending.swap(state.thread);
    } else {
      state.thread.detach();
    }
  }
  if (ending.joinable()) ending.join();
}

void BackgroundJudge::abandon() noexcept {
  state_->abandoned = true;
  // Its thread, and whatever lock that held, stayed in the parent process.
  (void)new (std::nothrow) std::shared_ptr<State>(state_);
}

}  // namespace tycho::analyzer
