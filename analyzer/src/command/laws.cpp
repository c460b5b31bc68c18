#include <fmt/format.h>

#include "command.h"
#include "comparisons/comparison_law.h"
#include "output.h"
#include "tycho/analyzer/law.h"

namespace tycho::analyzer::command {
namespace {

std::string describe(const LawDescription& law) {
  std::string text = fmt::format(
      "{}\n  {}\n  line         {}\n  formula      {}\n  assumptions  {}\n  what to do   {}\n",
      law.id, law.title, to_string(law.line), law.formula, law.assumptions, law.what_to_do);
  std::string statistics;
  for (const std::string& statistic : law.statistics)
    statistics += (statistics.empty() ? "" : ", ") + statistic;
  text += fmt::format("  statistics   {}\n", statistics);
  for (const std::string& caveat : law.caveats) text += fmt::format("  caveat       {}\n", caveat);
  return text + fmt::format("  source       {}\n", law.source);
}

int run_laws(const std::string& wanted, bool all) {
  std::string text;
  std::string known;
  std::vector<LawDescription> laws;
  for (const auto& law : make_laws()) laws.push_back(law->description());
  for (const auto& law : make_comparison_laws()) laws.push_back(law->description());
  for (const LawDescription& description : laws) {
    known += " " + description.id;
    if (all) {
      text += describe(description) + "\n";
      continue;
    }
    if (wanted.empty()) text += fmt::format("{:<30} {}\n", description.id, description.title);
    if (wanted == description.id) text = describe(description);
  }
  if (text.empty()) {
    say(fmt::format("there is no law {}; there are:{}", wanted, known));
    return kUsage;
  }
  if (Status status = write_output("", {}, text); !status.ok()) return fail(status);
  return kSuccess;
}

}  // namespace

void add_laws(CLI::App* app, Action* action) {
  auto wanted = std::make_shared<std::string>();
  auto* command = app->add_subcommand("laws",
                                      "List the laws: formula, assumptions, source, "
                                      "what to do");
  command->add_option("LAW", *wanted, "One law; default: list all");
  auto all = std::make_shared<bool>(false);
  command->add_flag("--all", *all, "Print everything about all laws");
  command->callback(
      [wanted, all, action] { *action = [wanted, all] { return run_laws(*wanted, *all); }; });
}

}  // namespace tycho::analyzer::command
