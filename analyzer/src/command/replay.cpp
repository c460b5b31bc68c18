#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <limits>
#include <map>
#include <string>
#include <thread>

#include "command.h"
#include "src/forwarding_handler.h"
#include "tycho/analyzer/live_judge.h"

namespace tycho::analyzer::command {
namespace {

struct Options {
  std::string run;
  double speed = 0;
  int64_t from = std::numeric_limits<int64_t>::min();
  int64_t to = std::numeric_limits<int64_t>::max();
};

/// The signal that asked to stop; 0: none.
volatile std::sig_atomic_t stop_signal = 0;

extern "C" void ask_to_stop(int signal) { stop_signal = signal; }

// Passes messages on at the pace at which they were recorded, times `speed`, until it is asked to
// stop or the output cannot be written.
class Pacer : public ForwardingHandler {
 public:
  Pacer(LiveJudge* judge, double speed, const bool* broken)
      : ForwardingHandler(judge), judge_(judge), speed_(speed), broken_(broken) {}
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    if (record.step() != step_) {
      judge_->finish_step();  // What is known of it is said before the next one is waited for.
      step_ = record.step();
    }
    wait(time_ns);
    return !stops() && ForwardingHandler::on_record(probe, record, time_ns);
  }
  bool stops() const { return *broken_ || stop_signal != 0; }

 private:
  void wait(int64_t time_ns) {
    if (speed_ <= 0) return;
    if (last_ns_ != 0 && time_ns > last_ns_) {
      constexpr double kLongest = 3600e9;  // A damaged time must not stop it for ever.
      constexpr double kSlice = 50e6;      // between looks at the signal
      double left = std::min(
          (static_cast<double>(time_ns) - static_cast<double>(last_ns_)) / speed_, kLongest);
      for (; left > 0 && !stops(); left -= kSlice) {
        std::this_thread::sleep_for(
            std::chrono::duration<double, std::nano>(std::min(left, kSlice)));
      }
    }
    last_ns_ = time_ns;
  }
  LiveJudge* judge_;
  double speed_;
  const bool* broken_;
  int64_t last_ns_ = 0;
  int64_t step_ = -1;
};

/// What is known at the end: how many verdicts of each kind.
std::string at_the_end(const LiveJudge& judge) {
  if (judge.engine().frames() == 0) return "end: no step was observed";
  std::map<Verdict, int> count;
  for (const LiveFinding& finding : judge.last_findings())
    count[finding.verdict] += finding.kind == LiveFinding::Kind::kVerdict;
  std::string text = fmt::format("end: step {}:", judge.engine().last_step());
  const char* separator = " ";
  for (const auto& [verdict, number] : count) {
    if (number == 0) continue;
    text += fmt::format("{}{} {}", separator, number, to_string(verdict));
    separator = ", ";
  }
  return text;
}

int run_replay(const Options& options) {
  auto reader = trace::RunReader::open(options.run);
  if (!reader.ok()) return fail(reader.status());
  std::signal(SIGINT, ask_to_stop);
  std::signal(SIGTERM, ask_to_stop);
  bool broken = false;
  const auto write = [&](const std::string& line) {
    broken = broken || std::fputs((line + "\n").c_str(), stdout) < 0 || std::fflush(stdout) != 0;
  };
  LiveJudge judge([&](const LiveFinding& finding) { write(describe(finding)); });
  Pacer pacer(&judge, options.speed, &broken);
  trace::ReadOptions range;
  range.from_step = options.from;
  range.to_step = options.to;
  if (Status status = reader.value()->read(pacer, range); !status.ok()) return fail(status);
  if (stop_signal != 0) return 128 + stop_signal;
  judge.finish();
  write(at_the_end(judge));
  if (broken) return fail(Status(Status::Code::kIoError, "cannot write the output"));
  return tell_losses(trace::losses(reader.value()->segments(), reader.value()->skipped()));
}

}  // namespace

void add_replay(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand(
      "replay",
      "Feed a trace through the live analyzer and print its findings at the steps at which they "
      "were known");
  command->add_option("RUN", options->run, "Run directory, or one segment")->required();
  command
      ->add_option("--speed", options->speed,
                   "1: as fast as it was recorded; 0 (default): as fast as possible")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--from", options->from, "First step");
  command->add_option("--to", options->to, "Last step");
  command->callback([options, action] {
    if (options->from > options->to)
      throw CLI::ValidationError("--to", "the last step is before the first");
    *action = [options] { return run_replay(*options); };
  });
}

}  // namespace tycho::analyzer::command
