#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "alert_options.h"
#include "command.h"
#include "src/serve/access.h"
#include "src/serve/server.h"
#include "terminal.h"

namespace tycho::analyzer::command {
namespace {

struct Options {
  std::vector<std::string> directories;
  ServerOptions server;
  AlertOptions alerts;
  std::string cache = default_cache_directory();
};

std::string address(const ServerOptions& options, int port) {
  const bool is_ipv6 = options.host.find(':') != std::string::npos;
  return fmt::format("http://{}:{}/{}", is_ipv6 ? "[" + options.host + "]" : options.host, port,
                     options.token.empty() ? "" : "?token=" + options.token);
}

int run_serve(const Options& options) {
  for (const std::string& directory : options.directories) {
    std::error_code error;
    if (!std::filesystem::is_directory(directory, error))
      return fail(Status(Status::Code::kNotFound,
                         directory + (error ? ": " + error.message() : " is not a directory")));
  }
  // Before there are other threads: none of them is interrupted by a signal.
  Signals signals;
  auto alerts = Alerts::open(options.alerts);
  if (!alerts.ok()) {
    (void)fail(alerts.status());
    return kUsage;
  }
  CatalogOptions following;
  following.alerts = alerts.value().get();
  std::unique_ptr<CardIndex> index;
  const auto inside =
      std::find_if(options.directories.begin(), options.directories.end(),
                   [&](const std::string& directory) { return lies_in(options.cache, directory); });
  if (!options.cache.empty() && inside != options.directories.end()) {
    say(fmt::format(
        "no cache, so runs are read at each start: {} is inside {}, to which nothing is written",
        options.cache, *inside));
  } else if (!options.cache.empty()) {
    auto opened = CardIndex::open(options.cache, program_identity());
    if (opened.ok()) {
      index = std::move(opened).value();
      following.index = index.get();
    } else {
      say("runs are read at each start: " + opened.status().message());
    }
  }
  RunCatalog catalog(options.directories, following);
  auto server = Server::open(options.server, &catalog);
  if (!server.ok()) return fail(server.status());
  catalog.start();
  std::thread answering([&] { server.value()->run(); });
  const bool told =
      std::printf("%s\n", address(options.server, server.value()->port()).c_str()) >= 0 &&
      std::fflush(stdout) == 0;
  if (told) {
    const int look_at_alerts = following.alerts->any() ? 1000 : -1;
    while (signals.wait(look_at_alerts, -1, -1) != Waited::kQuit) {
      if (signals.take_stop_request()) signals.stop();
      say_troubles(following.alerts);
    }
  }
  catalog.stop();  // Ends the streams.
  server.value()->stop();
  answering.join();
  following.alerts->close(std::chrono::seconds(2));
  say_troubles(following.alerts);
  if (const std::string lost = losses_text(following.alerts->counters()); !lost.empty()) say(lost);
  return told ? kSuccess : fail(Status(Status::Code::kIoError, "cannot write the output"));
}

}  // namespace

void add_serve(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand(
      "serve", "Live pages of all runs below directories, and /metrics; Ctrl-C quits");
  command->add_option("DIR", options->directories, "Directories of runs")->required();
  command->add_option("--host", options->server.host,
                      "Address to listen on; default 127.0.0.1: this machine only");
  command->add_option("--port", options->server.port, "Port; default 7117; 0: any free port")
      ->check(CLI::Range(0, 65535));
  command
      ->add_option("--token", options->server.token,
                   "Token that gives access; 16 or more of [A-Za-z0-9._~-]. Required with --host")
      ->envname("TYCHO_TOKEN");
  command
      ->add_option("--metrics-runs", options->server.metrics_runs,
                   "Maximum number of runs with their own gauges in /metrics; default 200")
      ->check(CLI::Range(0, 10000));
  command->add_option("--cache", options->cache,
                      "Directory that caches verdicts of ended runs for the next start; default "
                      "$XDG_CACHE_HOME/tycho or ~/.cache/tycho; \"\": nowhere");
  add_alert_options(command, &options->alerts);
  command->callback([options, action] {
    const ServerOptions& server = options->server;
    if (!server.token.empty() && !is_good_token(server.token))
      throw CLI::ValidationError("--token", "16 or more of the characters A-Z a-z 0-9 . _ ~ -");
    if (!is_loopback(server.host) && server.token.empty())
      throw CLI::ValidationError(
          "--host", server.host + " can be reached by others: --token (or TYCHO_TOKEN) is needed");
    *action = [options] { return run_serve(*options); };
  });
}

}  // namespace tycho::analyzer::command
