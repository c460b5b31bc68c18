#include <fmt/format.h>

#include "command.h"
#include "tycho/trace/run_reader.h"

namespace tycho::analyzer::command {
namespace {

int run_verify(const std::string& path) {
  auto reader = trace::RunReader::open(path);
  if (!reader.ok()) return fail(reader.status());
  trace::MessageHandler nobody;
  trace::ReadOptions everything;
  everything.skip_superseded = false;
  if (Status status = reader.value()->read(nobody, everything); !status.ok()) return fail(status);
  std::string text;
  for (const auto& segment : reader.value()->segments()) {
    text +=
        fmt::format("{}: {} messages in {} chunks, steps {} to {}{}\n", segment.name,
                    segment.messages, segment.chunks, segment.first_step, segment.last_step,
                    segment.sealed ? "" : "; not sealed: still being written, or its writer died");
  }
  uint64_t lost = 0;
  for (const auto& region : reader.value()->skipped()) {
    lost += region.end - region.begin;
    text += fmt::format("{}: bytes {} to {} are damaged: {}; {} (after step {}, before step {})\n",
                        region.segment, region.begin, region.end, region.why,
                        region.messages > 0 ? fmt::format("{} messages are lost", region.messages)
                                            : "it is not known how many messages are lost",
                        region.after_step, region.before_step);
  }
  text += reader.value()->skipped().empty()
              ? "intact\n"
              : fmt::format("damaged: {} bytes cannot be read\n", lost);
  if (Status status = write_output("", text); !status.ok()) return fail(status);
  return reader.value()->skipped().empty() ? kSuccess : kLossy;
}

}  // namespace

void add_verify(CLI::App* app, Action* action) {
  auto run = std::make_shared<std::string>();
  auto* command = app->add_subcommand(
      "verify", "Is a trace intact? Exit status 0: yes, 3: damaged, 1: unreadable");
  command->add_option("RUN", *run, "Run directory, or one segment")->required();
  command->callback([run, action] { *action = [run] { return run_verify(*run); }; });
}

}  // namespace tycho::analyzer::command
