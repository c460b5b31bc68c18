#include "followed_run.h"

#include <algorithm>
#include <utility>

namespace tycho::analyzer {
namespace {

constexpr size_t kMostChanges = 2000;
// The rate is that of so many seconds of the trainer's clock, and of at most so many records.
constexpr int64_t kRateWindowNs = 20'000'000'000;
constexpr size_t kMostTimes = 4096;

}  // namespace

bool has_ended(trace::RunState state) {
  return state == trace::RunState::kFinished || state == trace::RunState::kDied ||
         state == trace::RunState::kGone;
}

/// Hands messages to the engine of the day.
class FollowedRun::Feeder : public trace::FollowHandler {
 public:
  explicit Feeder(FollowedRun* run) : run_(run) {}
  void on_restart() override {
    ++run_->restarts_;
    run_->begin();
  }
  bool on_segment(const trace::SegmentInfo& info, const v1::RunDescription& run,
                  const v1::ModelDescription& model,
                  const v1::StatisticRegistry& registry) override {
    run_->closed_ = false;
    return engine().on_segment(info, run, model, registry);
  }
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    run_->note_time(record.step(), time_ns);
    return engine().on_record(probe, record, time_ns);
  }
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override {
    run_->news_ = true;
    return engine().on_optimizer(settings, time_ns);
  }
  bool on_event(const v1::Event& event, int64_t time_ns) override {
    run_->news_ = true;
    return engine().on_event(event, time_ns);
  }
  bool on_health(const v1::Health& health, int64_t time_ns) override {
    // It comes every few seconds, also where few steps are observed.
    run_->note_time(health.step(), time_ns);
    return engine().on_health(health, time_ns);
  }
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override {
    run_->news_ = true;
    return engine().on_structure(structure, time_ns);
  }
  bool on_finding(const v1::Finding& finding, int64_t time_ns) override {
    run_->news_ = true;
    return engine().on_finding(finding, time_ns);
  }

 private:
  trace::MessageHandler& engine() { return run_->builder_->handler(); }
  FollowedRun* run_;
};

FollowedRun::FollowedRun(std::string path, FollowOptions options)
    : path_(std::move(path)), options_(options), follower_(path_) {
  begin();
}

void FollowedRun::begin() {
  LiveJudge::Listener listener;
  if (options_.changes) {
    listener = [this](const LiveFinding& finding) {
      add_change(finding, &changes_);
      if (changes_.size() > kMostChanges) changes_.erase(changes_.begin());
    };
  }
  builder_ = std::make_unique<ReportBuilder>(path_, options_.series, std::move(listener));
  if (!options_.changes) builder_->watch_alarms();
  changes_.clear();
  times_.clear();
  last_time_ns_ = 0;
  last_step_ = -1;
  closed_ = false;
  news_ = true;
}

void FollowedRun::note_time(int64_t step, int64_t time_ns) {
  news_ = true;
  // A clock that was set back, or steps that were.
  if (!times_.empty() && (time_ns < times_.back().second || step < times_.back().first))
    times_.clear();
  last_step_ = std::max(last_step_, step);
  last_time_ns_ = time_ns;
  if (!times_.empty() && times_.back().first == step) return;
  times_.emplace_back(step, time_ns);
  // `time_ns` may be anything; a difference of the two may be more than a number holds.
  while (times_.size() > 2 &&
         (times_.size() > kMostTimes ||
          static_cast<double>(time_ns) - static_cast<double>(times_[1].second) >
              static_cast<double>(kRateWindowNs)))
    times_.pop_front();
}

double FollowedRun::steps_per_second() const {
  if (times_.size() < 2) return kUnknown;
  const double seconds =
      (static_cast<double>(times_.back().second) - static_cast<double>(times_.front().second)) *
      1e-9;
  const double steps =
      static_cast<double>(times_.back().first) - static_cast<double>(times_.front().first);
  return seconds > 0 ? steps / seconds : kUnknown;
}

bool FollowedRun::poll(uint64_t most_bytes) {
  Feeder feeder(this);
  const bool more = follower_.poll(feeder, most_bytes);
  if (!has_ended(follower_.state())) read_again_ = false;
  if (more || !has_ended(follower_.state())) return more;
  // What was passed while it was written is read once more as it is now.
  if (follower_.is_doubtful() && !read_again_ && follower_.state() != trace::RunState::kGone) {
    read_again_ = true;
    follower_.restart();
    return true;
  }
  if (!closed_) {
    closed_ = true;
    builder_->finish();
    news_ = true;
  }
  return false;
}

void FollowedRun::judge() {
  if (!news_ && judged_state_ == follower_.state()) return;
  news_ = false;
  judged_state_ = follower_.state();
  ++version_;
  builder_->update(follower_.run(), follower_.model(), follower_.registry(), follower_.segments(),
                   follower_.skipped());
  remarks_ = analyzer::remarks(report());
  for (const Alarm& alarm : builder_->alarms()) {
    const bool known = std::any_of(remarks_.begin(), remarks_.end(),
                                   [&](const Remark& remark) { return remark.code == alarm.code; });
    if (known) continue;
    remarks_.push_back({alarm.code, alarm.severity, alarm.title, alarm.text, alarm.step,
                        alarm.value, "", alarm.scope});
  }
  std::stable_sort(remarks_.begin(), remarks_.end(),
                   [](const Remark& a, const Remark& b) { return a.severity < b.severity; });
}

std::vector<VerdictChange> FollowedRun::take_changes() { return std::exchange(changes_, {}); }

}  // namespace tycho::analyzer
