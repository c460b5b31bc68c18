#include "tycho/trace/run_follower.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <limits>

#include "segment_feed.h"

namespace tycho::trace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kEverything = std::numeric_limits<uint64_t>::max();
// Where there are no locks: so long after it grew a segment counts as being written.
constexpr std::chrono::seconds kGrowthCounts{10};

}  // namespace

const char* to_string(RunState state) {
  switch (state) {
    case RunState::kWaiting:
      return "waiting";
    case RunState::kLive:
      return "live";
    case RunState::kFinished:
      return "finished";
    case RunState::kDied:
      return "died";
    case RunState::kGone:
      return "gone";
    case RunState::kUnreadable:
      return "unreadable";
  }
  return "";
}

struct RunFollower::Impl {
  explicit Impl(std::string run_path) : path(std::move(run_path)) {}

  Result<std::vector<std::string>> list() const;
  std::string segment_path(const std::string& name) const {
    return is_file ? path : (std::filesystem::path(path) / name).string();
  }
  bool still_there(const std::vector<std::string>& names);
  void open_new(const std::vector<std::string>& names);
  bool delivered_superseded() const;
  void begin_again(FollowHandler& handler);
  bool read(FollowHandler& handler, uint64_t most_bytes);
  void leave(FollowHandler& handler, bool is_whole);
  bool poll_once(FollowHandler& handler, uint64_t most_bytes);
  void set_state();
  void collect();

  std::string path;
  bool is_file = false;
  bool restart_asked = false;
  bool was_there = false;          ///< a segment was read, even if it is forgotten by now
  std::vector<std::string> known;  ///< names that were opened or given up, in order
  std::vector<std::unique_ptr<SegmentFeed>> feeds;
  std::vector<SkippedRegion> unreadable;
  std::vector<SkippedRegion> not_yet;  ///< the last segment, which could not be opened
  bool head_to_come = false;           ///< the last segment has a writer and no whole head
  std::string problem;
  size_t current = 0;
  bool announced = false;
  Clock::time_point grew_at = Clock::time_point::min();
  bool two_writers = false;
  bool doubtful = false;
  RunState state = RunState::kWaiting;
  std::string why;
  std::vector<SegmentInfo> infos;
  std::vector<SkippedRegion> skipped;
};

Result<std::vector<std::string>> RunFollower::Impl::list() const {
  if (is_file) {
    if (auto seen = look_at(path); !seen.ok()) return seen.status();
    return std::vector<std::string>{std::filesystem::path(path).filename().string()};
  }
  return list_segments(path);
}

// Whether what was read is still there: the same names, files and bytes. A segment that was left to
// an older session may grow.
bool RunFollower::Impl::still_there(const std::vector<std::string>& names) {
  if (names.size() < known.size() || !std::equal(known.begin(), known.end(), names.begin()))
    return false;
  for (const auto& feed : feeds) {
    if (!feed->is_open()) {
      const auto seen = look_at(segment_path(feed->info.name));
      if (!seen.ok() || !(seen.value().first == feed->identity()) ||
          (seen.value().second != feed->info.bytes && !feed->info.being_written))
        return false;
      continue;
    }
    const uint64_t before = feed->info.bytes;
    if (!feed->refresh().ok()) return false;
    if (feed->info.bytes != before) grew_at = Clock::now();
  }
  return true;
}

void RunFollower::Impl::open_new(const std::vector<std::string>& names) {
  not_yet.clear();
  head_to_come = false;
  problem.clear();
  for (size_t i = known.size(); i < names.size(); ++i) {
    const bool last = i + 1 == names.size();
    const std::string file = segment_path(names[i]);
    auto opened = SegmentFeed::open(file);
    if (!opened.ok()) {
      problem = opened.status().message();
      if (last) {
        not_yet.push_back(unreadable_segment(file, opened.status()));
        return;
      }
      unreadable.push_back(unreadable_segment(file, opened.status()));
    } else if (last && !opened.value()->has_descriptions) {
      head_to_come = opened.value()->info.being_written;
      problem = fmt::format("{}: its head is not whole", file);
      return;
    } else {
      feeds.push_back(std::move(opened).value());
    }
    known.push_back(names[i]);
  }
}

// Whether a session that was resumed records again what was handed over already.
bool RunFollower::Impl::delivered_superseded() const {
  return std::any_of(feeds.begin(), feeds.end(), [](const auto& feed) {
    return feed->last_step_delivered && *feed->last_step_delivered >= feed->superseded_from;
  });
}

void RunFollower::Impl::begin_again(FollowHandler& handler) {
  known.clear();
  feeds.clear();
  unreadable.clear();
  current = 0;
  announced = two_writers = doubtful = restart_asked = false;
  grew_at = Clock::time_point::min();
  handler.on_restart();
}

// Done with the current segment: what could not be read at its end is damage.
void RunFollower::Impl::leave(FollowHandler& handler, bool is_whole) {
  SegmentFeed& feed = *feeds[current];
  bool stopped = false;
  if (!is_whole) feed.advance(handler, {}, false, kEverything, &stopped);
  (void)feed.finish(handler, false);
  feed.release();
  ++current;
  announced = false;
}

// True: there is more to read at once.
bool RunFollower::Impl::read(FollowHandler& handler, uint64_t most_bytes) {
  while (current < feeds.size()) {
    SegmentFeed& feed = *feeds[current];
    if (!feed.is_open()) return false;  // The last one, which is finished.
    if (!announced) {
      (void)handler.on_segment(feed.info, feed.run, feed.model, feed.registry);
      if (feed.structure) (void)handler.on_structure(*feed.structure, feed.run.start_time_ns());
      announced = true;
    }
    bool stopped = false;
    const uint64_t begin = feed.position();
    const size_t skipped_before = feed.skipped.size();
    feed.advance(handler, {}, !feed.info.sealed, most_bytes, &stopped);
    doubtful = doubtful || (!feed.info.sealed && feed.skipped.size() > skipped_before);
    const uint64_t bytes = feed.position() - begin;
    if (bytes >= most_bytes && !feed.at_end()) return true;
    most_bytes -= std::min(bytes, most_bytes);
    const bool last = current + 1 == feeds.size();
    // The next segment is opened before this one is sealed, but by another session only when this
    // one has ended, or goes on in vain.
    const bool followed_by_session = !last && feeds[current + 1]->info.resumed;
    if (!feed.info.sealed && (last || (feed.info.being_written && !followed_by_session)))
      return false;
    if (!feed.info.sealed && feed.info.being_written) two_writers = doubtful = true;
    leave(handler, feed.info.sealed);
    if (most_bytes == 0 && current < feeds.size()) return true;
  }
  return false;
}

void RunFollower::Impl::collect() {
  infos.clear();
  skipped = unreadable;
  for (const auto& feed : feeds) {
    infos.push_back(feed->info);
    skipped.insert(skipped.end(), feed->skipped.begin(), feed->skipped.end());
    if (auto tail = feed->tail()) skipped.push_back(*tail);
  }
  skipped.insert(skipped.end(), not_yet.begin(), not_yet.end());
}

void RunFollower::Impl::set_state() {
  why.clear();
  const bool grows = grew_at != Clock::time_point::min() && Clock::now() - grew_at < kGrowthCounts;
  if (head_to_come) {
    state = feeds.empty() ? RunState::kWaiting : RunState::kLive;
    why = problem;
  } else if (feeds.empty()) {
    state = RunState::kUnreadable;
    why = problem;
  } else if (const SegmentFeed& feed = *feeds.back(); feed.info.sealed) {
    state = RunState::kFinished;
  } else if (feed.info.being_written || (grows && !feed.has_locks())) {
    state = RunState::kLive;
  } else {
    state = RunState::kDied;
    why = fmt::format("{} was not closed, and no process writes to it", feed.info.name);
  }
}

bool RunFollower::Impl::poll_once(FollowHandler& handler, uint64_t most_bytes) {
  std::error_code error;
  if (feeds.empty()) is_file = std::filesystem::is_regular_file(path, error);
  const auto listed = list();
  const bool nothing = listed.ok() && listed.value().empty();
  if (nothing || (!listed.ok() && listed.status().code() == Status::Code::kNotFound)) {
    state = was_there ? RunState::kGone : RunState::kWaiting;
    why = nothing ? fmt::format("{} holds no segment", path) : listed.status().message();
    return false;
  }
  if (!listed.ok()) {
    state = RunState::kUnreadable;
    why = listed.status().message();
    return false;
  }
  if (restart_asked || !still_there(listed.value())) begin_again(handler);
  open_new(listed.value());
  relate(feeds);
  if (delivered_superseded()) {
    begin_again(handler);
    open_new(listed.value());
    relate(feeds);
  }
  was_there = was_there || !feeds.empty();
  const bool more = read(handler, most_bytes);
  set_state();
  collect();
  return more;
}

RunFollower::RunFollower(std::string path) : impl_(std::make_unique<Impl>(std::move(path))) {}
RunFollower::~RunFollower() = default;

bool RunFollower::poll(FollowHandler& handler, uint64_t most_bytes) {
  if (impl_->poll_once(handler, most_bytes)) return true;
  // A segment may have been opened after the directory was read and before the one before it was
  // found closed.
  if (impl_->state != RunState::kFinished && impl_->state != RunState::kDied) return false;
  const auto now = impl_->list();
  if (!now.ok() || now.value().size() == impl_->known.size()) return false;
  return impl_->poll_once(handler, most_bytes);
}

void RunFollower::restart() { impl_->restart_asked = true; }
RunState RunFollower::state() const { return impl_->state; }
const std::string& RunFollower::why() const { return impl_->why; }
bool RunFollower::two_writers() const { return impl_->two_writers; }
bool RunFollower::is_doubtful() const { return impl_->doubtful; }
const std::vector<SegmentInfo>& RunFollower::segments() const { return impl_->infos; }
const std::vector<SkippedRegion>& RunFollower::skipped() const { return impl_->skipped; }

const v1::RunDescription& RunFollower::run() const {
  return impl_->feeds.empty() ? v1::RunDescription::default_instance() : impl_->feeds.back()->run;
}
const v1::ModelDescription& RunFollower::model() const {
  return impl_->feeds.empty() ? v1::ModelDescription::default_instance()
                              : impl_->feeds.back()->model;
}
const v1::StatisticRegistry& RunFollower::registry() const {
  return impl_->feeds.empty() ? v1::StatisticRegistry::default_instance()
                              : impl_->feeds.back()->registry;
}

}  // namespace tycho::trace
