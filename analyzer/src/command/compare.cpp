#include <fmt/format.h>

#include <algorithm>

#include "command.h"
#include "output.h"
#include "src/compare/comparison.h"

namespace tycho::analyzer::command {
namespace {

struct Options {
  std::vector<std::string> runs;
  std::string output;
  std::string format;
  std::string html;
  std::string json;
  std::string by = "step";
  std::string fail_on;
  std::vector<std::string> ignored;
};

Alignment alignment(const std::string& by) {
  return by == "examples" ? Alignment::kExamples
         : by == "time"   ? Alignment::kTime
                          : Alignment::kStep;
}

Status write_all(const Comparison& comparison, const Options& options) {
  if (!options.html.empty()) {
    if (Status status = write_output(options.html, options.runs, html_comparison(comparison));
        !status.ok())
      return status;
  }
  if (!options.json.empty()) {
    if (Status status = write_output(options.json, options.runs, json_comparison(comparison));
        !status.ok())
      return status;
  }
  const bool to_terminal = options.output.empty() || options.output == "-";
  // What was asked for as a file is not said twice; --html - and --json - took standard output.
  const bool elsewhere = !options.html.empty() || !options.json.empty();
  if (to_terminal && options.format.empty() && options.output.empty() && elsewhere &&
      (options.html == "-" || options.json == "-")) {
    return Status();
  }
  const std::string format = choose_format(options.format, options.output);
  return write_output(
      options.output, options.runs,
      format == "json" ? json_comparison(comparison)
      : format == "html"
          ? html_comparison(comparison)
          : text_comparison(comparison, to_terminal && wants_colour(),
                            to_terminal && stdout_is_terminal() ? terminal_width() : 100));
}

int run_compare(const Options& options) {
  const bool show = stderr_is_terminal();
  const auto progress = [&](size_t run, uint64_t frames) {
    show_progress(
        fmt::format("reading: run {} of {}, {} steps", run + 1, options.runs.size(), frames));
  };
  ComparisonOptions how;
  how.by = alignment(options.by);
  how.ignored = {options.ignored.begin(), options.ignored.end()};
  auto comparison =
      read_comparison(options.runs, how, show ? progress : std::function<void(size_t, uint64_t)>());
  if (show) show_progress("");
  if (!comparison.ok()) return fail(comparison.status());
  if (Status status = write_all(comparison.value(), options); !status.ok()) return fail(status);
  if (options.fail_on == "violated") {
    const auto& findings = comparison.value().findings;
    const auto violated = std::count_if(
        findings.begin(), findings.end(),
        [](const ComparisonFinding& finding) { return finding.verdict == Verdict::kViolated; });
    if (violated > 0) {
      say((violated == 1 ? "one law is" : fmt::format("{} findings are", violated)) + " violated");
      return kGate;
    }
  }
  std::vector<std::string> missing;
  for (const LeftOut& left : comparison.value().set.left_out())
    missing.push_back(fmt::format("left out {}: {}", left.path, left.why));
  for (const RunDigest& run : comparison.value().set.runs()) {
    for (const std::string& loss : run.losses)
      missing.push_back(fmt::format("{}: {}", run.name, loss));
  }
  return tell_losses(missing);
}

}  // namespace

void add_compare(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  auto* command =
      app->add_subcommand("compare", "Compare several runs, and judge the laws that need several");
  command->add_option("RUN", options->runs, "Run directories or segments; at least two")
      ->required()
      ->expected(2, 1 << 20);
  command->add_option("-o,--output", options->output, "File to write; default: standard output");
  command
      ->add_option("--format", options->format,
                   "Default: by the file name; text on standard output")
      ->check(CLI::IsMember({"html", "text", "json"}));
  command->add_option("--html", options->html, "Write the page to this file as well");
  command->add_option("--json", options->json, "Write the JSON to this file as well");
  command->add_option("--by", options->by, "Horizontal axis: step (default), examples or time")
      ->check(CLI::IsMember({"step", "examples", "time"}));
  command
      ->add_option("--ignore", options->ignored,
                   "A setting, as the comparison names it, that does not distinguish runs")
      ->allow_extra_args(false);
  command->add_option("--fail-on", options->fail_on, "Exit with 4 if a law is violated")
      ->check(CLI::IsMember({"violated"}));
  command->callback([options, action] { *action = [options] { return run_compare(*options); }; });
}

}  // namespace tycho::analyzer::command
