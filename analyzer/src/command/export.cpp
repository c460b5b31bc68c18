#include "../export/export.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "command.h"

namespace tycho::analyzer::command {

void add_export(CLI::App* app, Action* action) {
  struct Options {
    std::string run;
    std::string format = "csv";
    std::string output;
  };
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand("export", "Every value of a run, for other tools");
  command->add_option("RUN", options->run, "Run directory, or one segment")->required();
  command->add_option("--format", options->format, "csv, jsonl or tensorboard")
      ->check(CLI::IsMember({"csv", "jsonl", "tensorboard"}))
      ->capture_default_str();
  command->add_option("-o,--output", options->output, "File to write; default: standard output");
  command->callback([options, action] {
    *action = [options]() -> int {
      const bool to_file = !options->output.empty() && options->output != "-";
      std::FILE* out = to_file ? std::fopen(options->output.c_str(), "wb") : stdout;
      if (out == nullptr) {
        return fail(
            Status(Status::Code::kIoError,
                   fmt::format("cannot write {}: {}", options->output, std::strerror(errno))));
      }
      const auto outcome = options->format == "csv"     ? export_csv(options->run, out)
                           : options->format == "jsonl" ? export_jsonl(options->run, out)
                                                        : export_tensorboard(options->run, out);
      if (to_file) {
        const bool closed = std::fclose(out) == 0;
        if (!outcome.ok() || !closed) std::remove(options->output.c_str());
        if (outcome.ok() && !closed)
          return fail(Status(Status::Code::kIoError, "cannot write " + options->output));
      }
      if (!outcome.ok()) return fail(outcome.status());
      if (outcome.value().bytes_skipped == 0) return kSuccess;
      fmt::print(stderr, "tycho: {} bytes of the trace are damaged and were left out\n",
                 outcome.value().bytes_skipped);
      return kLossy;
    };
  });
}

}  // namespace tycho::analyzer::command
