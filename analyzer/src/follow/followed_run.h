#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/follow/verdict_changes.h"
#include "src/report/remarks.h"
#include "src/report/report_builder.h"
#include "tycho/trace/run_follower.h"

namespace tycho::analyzer {

struct FollowOptions {
  bool series = true;  ///< without, there are no charts (ReportBuilder)
  /// Without, take_changes() has none, alarms are looked at by judge() and not at steps of their
  /// own, and much is read faster.
  bool changes = true;
};

/// A run that is followed while it is written: its report, as far as it has come. At the end of the
/// run the report is that of read_report() on the same bytes. Memory as that of ReportBuilder,
/// however long the run is. One thread at a time.
class FollowedRun {
 public:
  explicit FollowedRun(std::string path, FollowOptions options = {});

  /// Reads about `most_bytes` of what is new. True: there is more to read at once.
  bool poll(uint64_t most_bytes);
  /// Brings report(), remarks() and changes up to date with what was read; does nothing where
  /// nothing was. Costs as much as the laws take to judge, whatever was read.
  void judge();

  /// From now on without series (ReportBuilder::drop_series).
  void drop_series() {
    options_.series = false;
    builder_->drop_series();
  }

  const Report& report() const { return builder_->report(); }
  /// Those of the report, and alarms of the LiveJudge (edge_passed, layer_silent, ...) that it does
  /// not have; the most serious first.
  const std::vector<Remark>& remarks() const { return remarks_; }
  /// Of verdicts, since the last call, as the LiveJudge says them: at the same steps as in the
  /// trainer and in `tycho replay`. The oldest are left out where there are very many.
  std::vector<VerdictChange> take_changes();
  trace::RunState state() const { return follower_.state(); }
  const std::string& why() const { return follower_.why(); }
  bool two_writers() const { return follower_.two_writers(); }
  /// Changes when there is something new to see.
  uint64_t version() const { return version_; }
  /// How often the run had to be read from the beginning.
  uint64_t restarts() const { return restarts_; }

  /// Of the last steps that were spoken of, by the clock of the trainer; NaN: not known.
  double steps_per_second() const;
  /// Wall clock of the trainer at the last observation; 0: there was none.
  int64_t last_time_ns() const { return last_time_ns_; }
  /// The last step of which there is an observation or a statement of cost; -1: there is none.
  int64_t last_step() const { return last_step_; }

 private:
  class Feeder;
  void begin();
  void note_time(int64_t step, int64_t time_ns);

  std::string path_;
  FollowOptions options_;
  trace::RunFollower follower_;
  std::unique_ptr<ReportBuilder> builder_;
  std::vector<Remark> remarks_;
  std::vector<VerdictChange> changes_;
  std::deque<std::pair<int64_t, int64_t>> times_;  ///< step and wall clock
  int64_t last_time_ns_ = 0;
  int64_t last_step_ = -1;
  uint64_t restarts_ = 0;
  uint64_t version_ = 0;
  bool news_ = true;  ///< since the last judge()
  bool closed_ = false;
  bool read_again_ = false;
  trace::RunState judged_state_ = trace::RunState::kWaiting;
};

/// A run whose state will not change unless somebody resumes, replaces or makes it.
bool has_ended(trace::RunState state);

}  // namespace tycho::analyzer
