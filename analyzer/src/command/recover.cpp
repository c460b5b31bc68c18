#include <fmt/format.h>

#include "command.h"
#include "tycho/trace/run_reader.h"

namespace tycho::analyzer::command {

void add_recover(CLI::App* app, Action* action) {
  struct Options {
    std::string run;
    std::string output;
  };
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand(
      "recover",
      "Rewrite the readable part as a clean trace. Exit status 0: nothing lost, 3: done with "
      "loss");
  command->add_option("RUN", options->run, "Run directory, or one segment")->required();
  command->add_option("OUT", options->output, "Run directory to create; must not exist")
      ->required();
  command->callback([options, action] {
    *action = [options]() -> int {
      const auto outcome = trace::recover(options->run, options->output);
      if (!outcome.ok()) return fail(outcome.status());
      const int status = tell_losses(outcome.value().losses);
      say(fmt::format("{} messages saved, {} bytes lost", outcome.value().messages,
                      outcome.value().bytes_lost));
      return status;
    };
  });
}

}  // namespace tycho::analyzer::command
