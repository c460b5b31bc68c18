#include "../report/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "../report/remarks.h"
#include "command.h"
#include "output.h"

namespace tycho::analyzer::command {
namespace {

struct Options {
  std::string run;
  std::string output;
  std::string format;
  std::vector<std::string> fail_on;
};

bool gates_on(const Options& options, const char* what) {
  return std::find(options.fail_on.begin(), options.fail_on.end(), what) != options.fail_on.end();
}

/// Says what the gate stops at.
int run_gate(const Options& options, const Report& report) {
  int status = kSuccess;
  if (gates_on(options, "violated")) {
    const auto violated =
        std::count_if(report.findings.begin(), report.findings.end(),
                      [](const Finding& finding) { return finding.verdict == Verdict::kViolated; });
    if (violated > 0) {
      say((violated == 1 ? "one law is" : fmt::format("{} findings are", violated)) + " violated");
      status = kGate;
    }
  }
  if (gates_on(options, "alarm")) {
    for (const Remark& remark : remarks(report)) {
      if (remark.severity != Severity::kAlarm) continue;
      say("alarm: " + remark.title +
          (remark.step < 0 ? "" : fmt::format(" (step {})", remark.step)));
      status = kGate;
    }
  }
  return status;
}

int run_report(const Options& options) {
  const bool progress = stderr_is_terminal();
  auto report = read_report(
      options.run,
      progress ? [](uint64_t frames) { show_progress(fmt::format("reading: {} steps", frames)); }
               : std::function<void(uint64_t)>());
  if (progress) show_progress("");
  if (!report.ok()) return fail(report.status());
  const std::string format = choose_format(options.format, options.output);
  const bool to_terminal = options.output.empty() || options.output == "-";
  const std::string text =
      format == "json" ? json_report(report.value())
      : format == "html"
          ? html_report(report.value())
          : text_report(report.value(), to_terminal && wants_colour(),
                        to_terminal && stdout_is_terminal() ? terminal_width() : 100);
  if (Status status = write_output(options.output, {options.run}, text); !status.ok())
    return fail(status);
  const int gate = run_gate(options, report.value());
  const int losses = tell_losses(trace::losses(report.value().segments, report.value().skipped));
  return gate == kSuccess ? losses : gate;
}

}  // namespace

void add_report(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  auto* command = app->add_subcommand("report", "Write the mechanics report of one run");
  command->add_option("RUN", options->run, "Run directory, or one segment")->required();
  command->add_option("-o,--output", options->output, "File to write; default: standard output");
  command
      ->add_option("--format", options->format,
                   "Default: by the file name; text on standard output")
      ->check(CLI::IsMember({"html", "text", "json"}));
  command
      ->add_option(
          "--fail-on", options->fail_on,
          "Exit with 4 if a law is violated, or if there is an alarm (the loss diverged or "
          "is not finite); both: violated,alarm")
      ->delimiter(',')
      ->check(CLI::IsMember({"violated", "alarm"}));
  command->callback([options, action] { *action = [options] { return run_report(*options); }; });
}

}  // namespace tycho::analyzer::command
