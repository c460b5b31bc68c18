#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <ctime>
#include <functional>
#include <string>

namespace tycho::examples {

/// What every example understands on its command line.
struct Arguments {
  std::string data;   ///< --data: real data in place of what the example makes; empty: none
  int64_t steps = 0;  ///< --steps: optimizer steps
  std::string run;    ///< --run: the run directory that Tycho writes
};

/// Parses the command line; `data_help` empty: the example takes no --data. `more` adds options of
/// the example's own. Ends the program on --help (0) and on a usage error (2).
inline Arguments parse_arguments(int argc, char** argv, const std::string& name,
                                 const std::string& question, const std::string& data_help,
                                 int64_t default_steps,
                                 const std::function<void(CLI::App&)>& more = nullptr) {
  Arguments arguments;
  arguments.steps = default_steps;
  char now[32] = "";
  const std::time_t time = std::time(nullptr);
  std::strftime(now, sizeof(now), "%Y%m%d-%H%M%S", std::localtime(&time));
  arguments.run = "runs/" + name + "-" + now;

  CLI::App app(question, name);
  if (!data_help.empty()) app.add_option("--data", arguments.data, data_help);
  app.add_option("--steps", arguments.steps, "optimizer steps")
      ->check(CLI::Range(1, 100000000))
      ->capture_default_str();
  app.add_option("--run", arguments.run, "run directory to write")->capture_default_str();
  if (more) more(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error) == 0 ? 0 : 2);
  }
  return arguments;
}

}  // namespace tycho::examples
