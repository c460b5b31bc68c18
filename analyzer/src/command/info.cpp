#include <fmt/format.h>

#include <map>

#include "command.h"
#include "output.h"
#include "src/printable.h"
#include "tycho/trace/run_reader.h"

namespace tycho::analyzer::command {
namespace {

struct Counter : trace::MessageHandler {
  std::map<std::string, uint64_t> records;
  uint64_t events = 0;
  bool on_record(const std::string& probe, const v1::Record&, int64_t) override {
    ++records[probe];
    return true;
  }
  bool on_event(const v1::Event&, int64_t) override {
    ++events;
    return true;
  }
};

// As docs/statistics.md has it.
std::string describe(const v1::StatisticRegistry& registry) {
  std::string text;
  for (const v1::StatisticDefinition& statistic : registry.statistic()) {
    std::string scopes;
    for (const int scope : statistic.scope()) {
      scopes += scopes.empty() ? "" : ", ";
      scopes += scope == v1::SCOPE_RUN     ? "run"
                : scope == v1::SCOPE_LAYER ? "layer"
                : scope == v1::SCOPE_INDEX ? "index"
                                           : "parameter";
    }
    text += fmt::format("`{}` = {}  [{}]  {}; probe {}\n  {}\n  Source: {}\n\n",
                        printable(statistic.name()), printable(statistic.symbol()),
                        printable(statistic.unit()), scopes, printable(statistic.probe()),
                        printable(statistic.definition()), printable(statistic.source()));
  }
  return text;
}

int run_info(const std::string& path, bool statistics) {
  auto reader = trace::RunReader::open(path);
  if (!reader.ok()) return fail(reader.status());
  if (statistics) {
    trace::MessageHandler nobody;
    if (Status status = reader.value()->read(nobody); !status.ok()) return fail(status);
    const Status status = write_output("", {}, describe(reader.value()->registry()));
    return status.ok() ? kSuccess : fail(status);
  }
  Counter counter;
  if (Status status = reader.value()->read(counter); !status.ok()) return fail(status);
  const v1::RunDescription& run = reader.value()->run();
  std::string text = fmt::format("run          {}\n", printable(run.run_id()));
  if (!run.run_name().empty()) text += fmt::format("name         {}\n", printable(run.run_name()));
  std::string command;
  for (const std::string& argument : run.command_line()) command += " " + printable(argument);
  if (!command.empty()) text += fmt::format("command line{}\n", command);
  if (!run.optimizer().empty())
    text += fmt::format("optimizer    {}\n", printable(run.optimizer()));
  text +=
      fmt::format("model        {} layers, {} parameters\n", reader.value()->model().layer_size(),
                  reader.value()->model().parameter_size());
  const auto part = [&](const char* title, const auto& entries) {
    const std::map<std::string, std::string> sorted(entries.begin(), entries.end());
    bool first = true;
    for (const auto& [key, value] : sorted) {
      text += fmt::format("{:<12} {} {}\n", first ? title : "", printable(key), printable(value));
      first = false;
    }
  };
  part("versions", run.versions());
  part("environment", run.environment());
  part("options", run.options());
  text += "segments\n";
  for (const auto& segment : reader.value()->segments()) {
    text += fmt::format(
        "  {}  steps {} to {}, {} messages, {} bytes, {}{}\n", printable(segment.name),
        segment.first_step, segment.last_step, segment.messages, segment.bytes,
        segment.sealed          ? "sealed"
        : segment.being_written ? "being written"
                                : "not sealed",
        segment.resumed ? fmt::format(", resumed at step {}", segment.resume_step) : "");
  }
  text += "records\n";
  for (const auto& [probe, count] : counter.records)
    text += fmt::format("  {:<20} {}\n", printable(probe), count);
  text += fmt::format("  {:<20} {}\n", "events", counter.events);
  const auto losses = trace::losses(reader.value()->segments(), reader.value()->skipped());
  for (const std::string& loss : losses) text += fmt::format("missing      {}\n", printable(loss));
  if (Status status = write_output("", {}, text); !status.ok()) return fail(status);
  return losses.empty() ? kSuccess : kLossy;
}

}  // namespace

void add_info(CLI::App* app, Action* action) {
  auto run = std::make_shared<std::string>();
  auto statistics = std::make_shared<bool>(false);
  auto* command = app->add_subcommand("info", "Show what a trace contains");
  command->add_option("RUN", *run, "Run directory, or one segment")->required();
  command->add_flag("--statistics", *statistics,
                    "Print the definitions of the recorded "
                    "statistics");
  command->callback([run, statistics, action] {
    *action = [run, statistics] { return run_info(*run, *statistics); };
  });
}

}  // namespace tycho::analyzer::command
