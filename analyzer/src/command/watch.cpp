#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <deque>
#include <filesystem>

#include "alert_options.h"
#include "command.h"
#include "output.h"
#include "src/follow/followed_run.h"
#include "src/follow/text_columns.h"
#include "src/follow/watch_lines.h"
#include "src/follow/watch_screen.h"
#include "src/printable.h"
#include "terminal.h"
#include "tycho/trace/file_system.h"

namespace tycho::analyzer::command {
namespace {

using trace::RunState;

// Reading is interrupted by the clock and by signals after so much.
constexpr uint64_t kBytesAtOnce = uint64_t{4} << 20;
constexpr size_t kRecentChanges = 200;

struct Options {
  std::string run;
  double interval = 1;
  bool once = false;
  bool json = false;
  std::vector<std::string> until;
  AlertOptions alerts;
};

// For alerts, when the run has ended, and when the user ends the command.
constexpr std::chrono::seconds kPatience{15};
constexpr std::chrono::seconds kShortPatience{2};

int64_t wall_clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// A directory of runs is a likely mistake.
std::string runs_below(const std::string& path) {
  const auto entries = trace::list_directory(path);
  if (!entries.ok()) return "";
  std::vector<std::string> runs;
  for (const std::string& name : entries.value()) {
    const auto segments = trace::list_segments((std::filesystem::path(path) / name).string());
    if (segments.ok() && !segments.value().empty()) runs.push_back(printable(name));
  }
  if (runs.empty()) return "";
  std::sort(runs.begin(), runs.end());
  std::string list;
  for (size_t i = 0; i < runs.size() && i < 5; ++i) list += (i > 0 ? ", " : "") + runs[i];
  return fmt::format("; there are runs below it: {}{}", list, runs.size() > 5 ? ", ..." : "");
}

class Watch {
 public:
  Watch(Options options, std::unique_ptr<Alerts> alerts)
      : options_(std::move(options)),
        run_(options_.run),
        drawn_(stdout_is_terminal() && !options_.json && !options_.once),
        alerts_(std::move(alerts)),
        alert_watch_(alerts_->watch(true)) {}

  int go() {
    const int status = options_.once ? once() : watch();
    if (alerts_->any()) {
      alerts_->close(quit_ ? kShortPatience : kPatience);
      say_troubles(alerts_.get());
      if (const std::string lost = losses_text(alerts_->counters()); !lost.empty()) say(lost);
    }
    return status;
  }

 private:
  int watch() {
    Screen screen;
    if (drawn_) screen.enter();
    int status = follow(&screen);
    screen.leave();
    // What was on the screen last stays readable.
    if (drawn_) status = say_all(picture(0)) ? status : kFailure;
    if (output_failed_) return fail(Status(Status::Code::kIoError, "cannot write the output"));
    if (!message_.ok()) return fail(message_);
    return status;
  }

  int once() {
    while (run_.poll(kBytesAtOnce)) {
    }
    run_.judge();
    tell_alarms();
    note_changes();
    if (run_.state() == RunState::kWaiting || run_.state() == RunState::kUnreadable)
      return fail(Status(Status::Code::kNotATrace, run_.why() + runs_below(options_.run)));
    const Status written = write_output(
        "", {}, options_.json ? watch_json(run_, {}, wall_clock_ns(), true) + "\n" : joined());
    if (!written.ok()) return fail(written);
    const int reached = reached_until();
    return reached >= 0 ? reached : tell();
  }

  std::string joined() const {
    std::string text;
    for (const std::string& line : picture(0)) text += line + "\n";
    return text;
  }

  std::vector<std::string> picture(size_t height) const {
    ScreenOptions screen;
    screen.width = stdout_is_terminal() ? static_cast<size_t>(terminal_width()) : 80;
    screen.height = height;
    screen.colour = wants_colour();
    screen.unicode = shows_unicode();
    std::vector<std::string> lines = watch_screen(run_, recent_, wall_clock_ns(), screen);
    const auto below_head = std::min<ptrdiff_t>(2, static_cast<ptrdiff_t>(lines.size()));
    for (const std::string& trouble : troubles_)
      lines.insert(lines.begin() + below_head, cut(printable(trouble), screen.width));
    if (height > 0 && lines.size() > height) lines.resize(height);
    return lines;
  }

  void tell_alarms() {
    if (!alerts_->any()) return;
    alerts_->send(alert_watch_.look(run_));
    if (!drawn_) return say_troubles(alerts_.get());
    for (std::string& trouble : alerts_->take_troubles()) troubles_.push_back(std::move(trouble));
  }

  bool say_all(const std::vector<std::string>& lines) {
    for (const std::string& line : lines) {
      if (std::fputs((line + "\n").c_str(), stdout) < 0) output_failed_ = true;
    }
    if (std::fflush(stdout) != 0) output_failed_ = true;
    return !output_failed_;
  }

  std::vector<VerdictChange> note_changes() {
    auto changes = run_.take_changes();
    recent_.insert(recent_.end(), changes.begin(), changes.end());
    while (recent_.size() > kRecentChanges) recent_.pop_front();
    return changes;
  }

  // The exit status where something came that is waited for; -1: go on.
  int reached_until() {
    for (const Remark& remark : run_.remarks()) {
      const bool waited_for =
          std::any_of(options_.until.begin(), options_.until.end(), [&](const std::string& code) {
            return code == remark.code || (code == "alarm" && remark.severity == Severity::kAlarm);
          });
      if (!waited_for) continue;
      if (!options_.json)
        say(fmt::format("{}: {}{}", to_string(remark.severity), remark.title,
                        remark.step < 0 ? "" : fmt::format(" (step {})", remark.step)));
      return kGate;
    }
    return -1;
  }

  int tell() const {
    return tell_losses(trace::losses(run_.report().segments, run_.report().skipped));
  }

  // The exit status of a run that has ended; -1: it has not.
  int ended() {
    switch (run_.state()) {
      case RunState::kFinished:
      case RunState::kDied:
        return drawn_ ? (run_.report().has_loss() ? kLossy : kSuccess) : tell();
      case RunState::kGone:
        message_ = Status(Status::Code::kNotFound, "the run is gone: " + run_.why());
        return kFailure;
      case RunState::kUnreadable:
        message_ = Status(Status::Code::kNotATrace, run_.why());
        return kFailure;
      default:
        return -1;
    }
  }

  bool show(Screen* screen) {
    const auto changes = note_changes();
    if (drawn_) return screen->draw(picture(static_cast<size_t>(std::max(0, terminal_height()))));
    if (options_.json) {
      const bool news = run_.version() != shown_version_ || !changes.empty();
      shown_version_ = run_.version();
      return !news || say_all({watch_json(run_, changes, wall_clock_ns(), false)});
    }
    return say_all(lines_.look(run_, changes));
  }

  int follow(Screen* screen) {
    Signals signals;
    using Clock = std::chrono::steady_clock;
    Clock::time_point judge_again = Clock::time_point::min();
    for (;;) {
      const bool more = run_.poll(kBytesAtOnce);
      const bool last_word =
          !more && (has_ended(run_.state()) || run_.state() == RunState::kUnreadable);
      if (last_word || Clock::now() >= judge_again) {
        const auto begin = Clock::now();
        run_.judge();
        const auto took = Clock::now() - begin;
        // Judging takes a tenth of the time at most.
        judge_again = Clock::now() + std::max<Clock::duration>(interval(), 10 * took);
        // What was over long ago is no news.
        if (!more) tell_alarms();
        if (!show(screen)) {
          output_failed_ = true;
          return kFailure;
        }
        if (const int reached = reached_until(); reached >= 0) return reached;
        if (last_word) return ended();
      }
      const int pause = more ? 0 : static_cast<int>(interval().count() / 2);
      const Waited waited = signals.wait(pause, screen->keys(), drawn_ ? -1 : STDOUT_FILENO);
      if (waited == Waited::kClosed) {
        output_failed_ = true;
        return kFailure;
      }
      quit_ = waited == Waited::kQuit;
      if (quit_) return signals.quit_signal() == 0 ? kSuccess : 128 + signals.quit_signal();
      const bool stop = signals.take_stop_request();
      if (stop) {
        screen->leave();
        signals.stop();
        if (drawn_) screen->enter();
      }
      if (drawn_ && (stop || waited == Waited::kResized)) (void)show(screen);
    }
  }

  std::chrono::milliseconds interval() const {
    return std::chrono::milliseconds(static_cast<int64_t>(options_.interval * 1000));
  }

  Options options_;
  FollowedRun run_;
  bool drawn_;
  std::unique_ptr<Alerts> alerts_;
  AlertWatch alert_watch_;
  std::vector<std::string> troubles_;  // of hooks, while a screen is drawn
  bool quit_ = false;
  bool output_failed_ = false;
  Status message_;
  WatchLines lines_;
  std::deque<VerdictChange> recent_;
  uint64_t shown_version_ = 0;
};

int run_watch(const Options& options) {
  auto alerts = Alerts::open(options.alerts);
  if (!alerts.ok()) {
    (void)fail(alerts.status());
    return kUsage;
  }
  return Watch(options, std::move(alerts).value()).go();
}

}  // namespace

void add_watch(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  auto* command =
      app->add_subcommand("watch", "Live view of a run that is being written; q or Ctrl-C quits");
  command
      ->add_option("RUN", options->run, "Run directory, which need not exist yet, or one segment")
      ->required();
  command->add_option("--interval", options->interval, "Seconds between updates; default 1")
      ->check(CLI::Range(0.1, 3600.0));
  command->add_flag("--once", options->once, "Print the current state and exit");
  command->add_flag("--json", options->json,
                    "One JSON object per change, one per line, for "
                    "programs");
  command
      ->add_option("--until", options->until,
                   "Exit when the run ends (end, the default), and exit with 4 on an alarm "
                   "(alarm) or a remark with this code; several: loss_diverged,not_finite")
      ->delimiter(',')
      ->check(CLI::IsMember(
          {"end",           "alarm",        "loss_not_finite",   "loss_diverged",
           "loss_rose",     "loss_jumped",  "loss_spikes",       "loss_stuck",
           "loss_at_floor", "overfitting",  "held_out_rose",     "held_out_falls",
           "not_finite",    "dead_units",   "instrument_failed", "trace_incomplete",
           "edge_passed",   "layer_silent", "updates_stopped",   "batch_far_past_noise_scale"}));
  add_alert_options(command, &options->alerts);
  command->callback([options, action] { *action = [options] { return run_watch(*options); }; });
}

}  // namespace tycho::analyzer::command
