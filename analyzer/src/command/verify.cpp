#include <fmt/format.h>

#include "command.h"
#include "output.h"
#include "src/printable.h"
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
    text += fmt::format("{}: {} messages in {} chunks, steps {} to {}{}\n", printable(segment.name),
                        segment.messages, segment.chunks, segment.first_step, segment.last_step,
                        segment.being_written ? "; being written" : "");
  }
  uint64_t lost = 0;
  for (const auto& region : reader.value()->skipped()) lost += region.end - region.begin;
  const auto losses = trace::losses(reader.value()->segments(), reader.value()->skipped());
  for (const std::string& loss : losses) text += printable(loss) + "\n";
  text += losses.empty() ? "intact\n"
          : reader.value()->skipped().empty()
              ? "intact as far as it was written\n"
              : fmt::format("damaged: {} bytes cannot be read\n", lost);
  if (Status status = write_output("", {}, text); !status.ok()) return fail(status);
  return losses.empty() ? kSuccess : kLossy;
}

}  // namespace

void add_verify(CLI::App* app, Action* action) {
  auto run = std::make_shared<std::string>();
  auto* command = app->add_subcommand(
      "verify",
      "Check whether a trace is intact. Exit status 0: yes (or it is being written), 3: "
      "damaged, or its writer died, 1: unreadable");
  command->add_option("RUN", *run, "Run directory, or one segment")->required();
  command->callback([run, action] { *action = [run] { return run_verify(*run); }; });
}

}  // namespace tycho::analyzer::command
