#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <thread>

#include "command.h"
#include "src/forwarding_handler.h"
#include "src/printable.h"
#include "tycho/analyzer/engine.h"

namespace tycho::analyzer::command {
namespace {

struct Options {
  std::string run;
  double speed = 0;
  int64_t from = std::numeric_limits<int64_t>::min();
  int64_t to = std::numeric_limits<int64_t>::max();
};

// Passes messages on at the pace at which they were recorded, times `speed`.
class Pacer : public ForwardingHandler {
 public:
  /// `broken`: set where the output cannot be written, which ends the reading.
  Pacer(Engine* engine, double speed, const bool* broken)
      : ForwardingHandler(engine), speed_(speed), broken_(broken) {}
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    if (*broken_) return false;
    wait(time_ns);
    return ForwardingHandler::on_record(probe, record, time_ns);
  }

 private:
  void wait(int64_t time_ns) {
    if (speed_ <= 0) return;
    if (last_ns_ != 0 && time_ns > last_ns_) {
      constexpr double kLongest = 3600e9;  // A damaged time must not stop it for ever.
      const double pause = (static_cast<double>(time_ns) - static_cast<double>(last_ns_)) / speed_;
      std::this_thread::sleep_for(
          std::chrono::duration<double, std::nano>(std::min(pause, kLongest)));
    }
    last_ns_ = time_ns;
  }
  double speed_;
  const bool* broken_;
  int64_t last_ns_ = 0;
};

int run_replay(const Options& options) {
  auto reader = trace::RunReader::open(options.run);
  if (!reader.ok()) return fail(reader.status());
  Engine engine;
  std::map<std::string, Verdict> verdicts;
  uint64_t frames = 0;
  uint64_t next_look = 1;
  bool broken = false;
  const auto look = [&](int64_t step) {
    for (const Finding& finding : engine.findings()) {
      const std::string key = finding.law + " " + finding.scope;
      const auto known = verdicts.find(key);
      if (known != verdicts.end() && known->second == finding.verdict) continue;
      if (known != verdicts.end() || finding.verdict != Verdict::kNotYet) {
        broken = broken ||
                 std::printf(
                     "%s", fmt::format("step {}: {}: {} -> {}\n", step, printable(key),
                                       known == verdicts.end() ? "(new)" : to_string(known->second),
                                       to_string(finding.verdict))
                               .c_str()) < 0;
      }
      verdicts[key] = finding.verdict;
    }
  };
  engine.add_consumer([&](const RunContext&, const Frame& frame) {
    // Verdicts cost more than a frame: looked at after every frame at first, then every few per
    // cent.
    if (++frames < next_look) return;
    next_look = frames + 1 + frames / 50;
    look(frame.step());
  });
  Pacer pacer(&engine, options.speed, &broken);
  trace::ReadOptions range;
  range.from_step = options.from;
  range.to_step = options.to;
  if (Status status = reader.value()->read(pacer, range); !status.ok()) return fail(status);
  engine.finish();
  look(engine.last_step());
  if (broken || std::fflush(stdout) != 0)
    return fail(Status(Status::Code::kIoError, "cannot write the output"));
  return tell_losses(trace::losses(reader.value()->segments(), reader.value()->skipped()));
}

}  // namespace

void add_replay(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand(
      "replay", "Feed a trace through the live analyzer and tell how verdicts changed");
  command->add_option("RUN", options->run, "Run directory, or one segment")->required();
  command
      ->add_option("--speed", options->speed,
                   "1: as fast as it was recorded; 0 (default): as fast as possible")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--from", options->from, "First step");
  command->add_option("--to", options->to, "Last step");
  command->callback([options, action] {
    if (options->from > options->to)
      throw CLI::ValidationError("--to", "the last step comes before the first");
    *action = [options] { return run_replay(*options); };
  });
}

}  // namespace tycho::analyzer::command
