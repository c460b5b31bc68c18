#include "../report/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "command.h"

namespace tycho::analyzer::command {
namespace {

struct Options {
  std::string run;
  std::string output;
  std::string format;
  std::string fail_on;
};

int run_report(const Options& options) {
  const bool progress = stderr_is_terminal();
  auto report = read_report(options.run, progress ? [](uint64_t frames) {
    fmt::print(stderr, "\rreading: {} steps", frames);
    std::fflush(stderr);
  } : std::function<void(uint64_t)>());
  if (progress) fmt::print(stderr, "\r\x1b[K");
  if (!report.ok()) return fail(report.status());
  const std::string format = choose_format(options.format, options.output);
  const bool to_terminal = options.output.empty() || options.output == "-";
  const std::string text =
      format == "json" ? json_report(report.value())
      : format == "html"
          ? html_report(report.value())
          : text_report(report.value(), to_terminal && wants_colour(),
                        to_terminal && stdout_is_terminal() ? terminal_width() : 100);
  if (Status status = write_output(options.output, text); !status.ok()) return fail(status);
  if (options.fail_on == "violated") {
    const auto& findings = report.value().findings;
    const auto violated =
        std::count_if(findings.begin(), findings.end(),
                      [](const Finding& finding) { return finding.verdict == Verdict::kViolated; });
    if (violated > 0) {
      fmt::print(stderr, "tycho: {} violated\n",
                 violated == 1 ? "one law is" : fmt::format("{} findings are", violated));
      return kFailure;
    }
  }
  uint64_t unread = 0;
  for (const auto& region : report.value().skipped) unread += region.end - region.begin;
  if (unread > 0) {
    fmt::print(stderr, "tycho: {} bytes of the trace could not be read; the report has the rest\n",
               unread);
    return kLossy;
  }
  return kSuccess;
}

}  // namespace

void add_report(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand("report", "The mechanics report of one run");
  command->add_option("RUN", options->run, "Run directory, or one segment")->required();
  command->add_option("-o,--output", options->output, "File to write; default: standard output");
  command
      ->add_option("--format", options->format,
                   "Default: by the name of the file; text on standard output")
      ->check(CLI::IsMember({"html", "text", "json"}));
  command->add_option("--fail-on", options->fail_on, "Exit with 1 if a law is violated")
      ->check(CLI::IsMember({"violated"}));
  command->callback([options, action] { *action = [options] { return run_report(*options); }; });
}

}  // namespace tycho::analyzer::command
