#include "run_catalog.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "src/serve/find_runs.h"
#include "tycho/trace/file_system.h"

namespace tycho::analyzer {
namespace {

using trace::RunState;

constexpr uint64_t kBytesAtOnce = uint64_t{4} << 20;
// More engines would take more memory than is bounded by what is looked at.
constexpr size_t kMostEngines = 256;

// Names and sizes of the segments: another one, and the run has been resumed or replaced.
using Signature = std::vector<std::pair<std::string, uint64_t>>;

Signature signature_of(const std::string& directory) {
  Signature signature;
  const auto names = trace::list_segments(directory);
  if (!names.ok()) return signature;
  for (const std::string& name : names.value()) {
    const auto seen = trace::look_at((std::filesystem::path(directory) / name).string());
    signature.emplace_back(name, seen.ok() ? seen.value().second : 0);
  }
  return signature;
}

}  // namespace

struct RunCatalog::Entry {
  std::string name;
  std::string directory;
  // Of the thread.
  std::unique_ptr<FollowedRun> run;
  bool has_series = false;
  bool more = false;  ///< there is more to read at once
  Clock::time_point due = Clock::time_point::min();
  Clock::time_point judge_again = Clock::time_point::min();
  Signature signature;   ///< when it was read to its end
  SegmentTimes kept;     ///< what the index was told of last
  uint64_t page_of = 0;  ///< version of the run that the page shows
  AlertWatch alert_watch;
  // Under the mutex.
  std::shared_ptr<const RunCard> card;
  std::shared_ptr<const RunPage> page;
  Clock::time_point looked_at = Clock::time_point::min();
};

RunCatalog::RunCatalog(std::vector<std::string> roots, CatalogOptions options)
    : roots_(std::move(roots)), options_(options) {}

RunCatalog::~RunCatalog() { stop(); }

void RunCatalog::start() {
  thread_ = std::thread([this] { work(); });
}

void RunCatalog::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool RunCatalog::stopping() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stop_;
}

AlertCounters RunCatalog::alerts() const {
  return options_.alerts != nullptr ? options_.alerts->counters() : AlertCounters();
}

RunCatalog::Cards RunCatalog::cards() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Cards result;
  result.version = version_;
  result.complete = complete_;
  for (const auto& [name, entry] : entries_) result.cards.push_back(entry->card);
  return result;
}

std::shared_ptr<const RunCard> RunCatalog::card(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : found->second->card;
}

std::string RunCatalog::directory(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = entries_.find(name);
  return found == entries_.end() ? "" : found->second->directory;
}

uint64_t RunCatalog::wait_for_change(uint64_t version, std::chrono::milliseconds most) const {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, most, [&] { return stop_ || version_ != version; });
  return version_;
}

std::shared_ptr<const RunPage> RunCatalog::page(const std::string& name, uint64_t version,
                                                std::chrono::milliseconds most) {
  std::unique_lock<std::mutex> lock(mutex_);
  std::shared_ptr<const RunPage> found;
  const auto there = [&] {
    const auto entry = entries_.find(name);
    if (entry == entries_.end()) {
      found = nullptr;
      return true;
    }
    Entry& run = *entry->second;
    const auto now = Clock::now();
    if (run.page == nullptr && !wake_) {
      wake_ = true;  // The thread may be asleep, and has a page to make.
      changed_.notify_all();
    }
    run.looked_at = now;
    found = run.page;
    return stop_ || (found != nullptr && found->version != version);
  };
  changed_.wait_for(lock, most, there);
  return found;
}

bool RunCatalog::is_looked_at(const Entry& entry) const {
  return entry.looked_at != Clock::time_point::min() &&
         Clock::now() - entry.looked_at < options_.keep_series;
}

void RunCatalog::look_for_runs() {
  const FoundRuns found = find_runs(roots_);
  std::vector<std::unique_ptr<Entry>> added;
  for (const auto& [name, directory] : found.directories) {
    // Only this thread adds and removes.
    if (entries_.count(name) > 0) continue;
    auto entry = std::make_unique<Entry>();
    entry->name = name;
    entry->directory = directory;
    if (options_.alerts != nullptr) entry->alert_watch = options_.alerts->watch(looked_once_);
    RunCard card = glance(directory);
    // Runs that come later are read: there may be alarms to tell.
    if (options_.index != nullptr && !looked_once_ && analyzer::has_ended(card.state)) {
      const auto kept = options_.index->find(directory);
      if (kept && kept->state == card.state) {
        card = *kept;
        entry->signature = signature_of(directory);
      }
    }
    card.name = name;
    entry->card = std::make_shared<const RunCard>(std::move(card));
    added.push_back(std::move(entry));
  }
  looked_once_ = true;
  const std::lock_guard<std::mutex> lock(mutex_);
  bool news = found.complete != complete_ || !added.empty();
  complete_ = found.complete;
  for (auto& entry : added) {
    RunCard card = *entry->card;
    card.version = version_ + 1;
    entry->card = std::make_shared<const RunCard>(std::move(card));
    entries_.emplace(entry->name, std::move(entry));
  }
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const bool gone = found.directories.count(entry->first) == 0;
    // Whoever looks at it is told that it is gone.
    if (!gone || is_looked_at(*entry->second)) {
      ++entry;
      continue;
    }
    entry = entries_.erase(entry);
    news = true;
  }
  if (!news) return;
  ++version_;
  changed_.notify_all();
}

// Who is to be attended to: those somebody looks at, then live ones, then what is still to be read,
// the newest first; of equals who waits longest. `when` there is something to do for any.
RunCatalog::Entry* RunCatalog::next(Clock::time_point* when) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto now = Clock::now();
  Entry* chosen = nullptr;
  std::pair<int, int64_t> chosen_rank;
  for (const auto& [name, entry] : entries_) {
    const bool looked_at = is_looked_at(*entry);
    const bool starts = looked_at && (entry->run == nullptr || !entry->has_series);
    if (entry->due > now && !starts) {
      *when = std::min(*when, entry->due);
      continue;
    }
    const RunCard& card = *entry->card;
    const bool is_live = card.state == RunState::kLive && card.is_read;
    const bool is_new = !card.is_read && !looked_at;
    // What is read in many pieces does not keep the others waiting.
    const int order = is_new ? 2 : looked_at || is_live ? 0 : 1;
    const std::pair<int, int64_t> rank{
        order, is_new ? -card.start_time_ns : entry->due.time_since_epoch().count()};
    if (chosen != nullptr && chosen_rank <= rank) continue;
    chosen = entry.get();
    chosen_rank = rank;
  }
  return chosen;
}

void RunCatalog::attend(Entry* entry) {
  bool looked_at = false;
  size_t engines = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    looked_at = is_looked_at(*entry);
    if (!looked_at) entry->page = nullptr;
    for (const auto& [name, other] : entries_) engines += other->run != nullptr ? 1 : 0;
  }
  const bool has_ended_and_is_read =
      entry->card->is_read && analyzer::has_ended(entry->card->state);
  if (looked_at && !entry->has_series) entry->run = nullptr;  // Its series are to be read.
  if (!looked_at && entry->has_series) {
    // An engine without series goes on where it is; of a run that has ended the card is enough.
    entry->has_series = false;
    if (entry->run != nullptr) entry->run->drop_series();
    if (has_ended_and_is_read) entry->run = nullptr;
  }
  if (entry->run == nullptr && !looked_at) {
    if (has_ended_and_is_read && signature_of(entry->directory) == entry->signature) {
      entry->due = Clock::now() + options_.poll_ended;
      return;
    }
    if (engines >= kMostEngines) {
      entry->due = Clock::now() + options_.poll_ended;
      return;
    }
  }
  if (entry->run == nullptr) {
    entry->run = std::make_unique<FollowedRun>(entry->directory, FollowOptions{looked_at, false});
    entry->has_series = looked_at;
    entry->page_of = 0;
  }
  read(entry, looked_at, engines);
}

void RunCatalog::read(Entry* entry, bool looked_at, size_t engines) {
  FollowedRun& run = *entry->run;
  const SegmentTimes times =
      options_.index != nullptr ? segment_times(entry->directory) : SegmentTimes();
  entry->more = run.poll(kBytesAtOnce);
  const auto begin = Clock::now();
  const bool ended = !entry->more && analyzer::has_ended(run.state());
  const bool often = looked_at || run.state() == RunState::kLive;
  entry->due = entry->more ? begin : begin + (often ? options_.poll_live : options_.poll_ended);
  // While much is read at once nothing is shown: it would be judged in vain.
  if (entry->more || (!ended && begin < entry->judge_again)) return;
  run.judge();
  publish(entry, looked_at);
  if (ended && options_.index != nullptr && times != entry->kept) {
    options_.index->keep(entry->directory, times, *entry->card);
    entry->kept = times;
  }
  // Judging and drawing take a quarter of the time at most, all runs together.
  const auto share = 10 + (looked_at ? 0 : 4 * static_cast<int64_t>(engines));
  entry->judge_again =
      Clock::now() + std::max<Clock::duration>(options_.poll_live, share * (Clock::now() - begin));
  if (!ended || looked_at) return;
  entry->signature = signature_of(entry->directory);
  entry->run = nullptr;
}

void RunCatalog::publish(Entry* entry, bool looked_at) {
  const FollowedRun& run = *entry->run;
  if (options_.alerts != nullptr && options_.alerts->any())
    options_.alerts->send(entry->alert_watch.look(run));
  RunCard card = make_card(run);
  card.name = entry->name;
  std::shared_ptr<RunPage> page;
  if (looked_at && entry->page_of != run.version()) {
    page = std::make_shared<RunPage>(make_page(run.report()));
    entry->page_of = run.version();
  }
  const bool same = looks_the_same(card, *entry->card);
  if (same && page == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!same) {
    ++version_;
    card.version = version_;
    entry->card = std::make_shared<const RunCard>(std::move(card));
  }
  if (page != nullptr) {
    page->version = ++version_;
    entry->page = std::move(page);
  }
  changed_.notify_all();
}

// Memory was out, or there is an error in a law: the other runs are followed all the same.
void RunCatalog::give_up(Entry* entry, const std::string& why) {
  entry->run = nullptr;
  entry->has_series = false;
  entry->due = Clock::now() + 10 * options_.poll_ended;
  RunCard card = *entry->card;
  card.state = RunState::kUnreadable;
  card.why = why;
  const std::lock_guard<std::mutex> lock(mutex_);
  card.version = ++version_;
  entry->card = std::make_shared<const RunCard>(std::move(card));
  changed_.notify_all();
}

void RunCatalog::work() {
  for (;;) {
    if (stopping()) return;
    const auto now = Clock::now();
    if (now >= look_again_) {
      look_for_runs();
      look_again_ = Clock::now() + options_.look_for_runs;
    }
    Clock::time_point when = look_again_;
    if (Entry* entry = next(&when); entry != nullptr) {
      try {
        attend(entry);
      } catch (const std::exception& error) {
        give_up(entry, error.what());
      }
      continue;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_until(lock, when, [&] { return stop_ || wake_; });
    wake_ = false;
  }
}

}  // namespace tycho::analyzer
