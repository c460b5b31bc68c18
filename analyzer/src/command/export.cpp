#include "../export/export.h"

#include "command.h"
#include "output.h"

namespace tycho::analyzer::command {

void add_export(CLI::App* app, Action* action) {
  struct Options {
    std::string run;
    std::string format = "csv";
    std::string output;
  };
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand("export", "Export every value of a run for other tools");
  command->add_option("RUN", options->run, "Run directory, or one segment")->required();
  command->add_option("--format", options->format, "csv, jsonl or tensorboard")
      ->check(CLI::IsMember({"csv", "jsonl", "tensorboard"}))
      ->capture_default_str();
  command->add_option("-o,--output", options->output, "File to write; default: standard output");
  command->callback([options, action] {
    *action = [options]() -> int {
      auto output = Output::open(options->output, {options->run});
      if (!output.ok()) return fail(output.status());
      std::FILE* out = output.value()->stream();
      const auto outcome = options->format == "csv"     ? export_csv(options->run, out)
                           : options->format == "jsonl" ? export_jsonl(options->run, out)
                                                        : export_tensorboard(options->run, out);
      if (!outcome.ok()) {
        if (std::ferror(out) == 0 || out == stdout) return fail(outcome.status());
        return fail(
            Status(outcome.status().code(), options->output + ": " + outcome.status().message()));
      }
      if (Status status = output.value()->commit(); !status.ok()) return fail(status);
      return tell_losses(outcome.value().losses);
    };
  });
}

}  // namespace tycho::analyzer::command
