#include "alert_options.h"

#include <map>

#include "command.h"

namespace tycho::analyzer::command {

void add_alert_options(CLI::App* command, AlertOptions* options) {
  command->add_option("--on-alarm", options->command,
                      "Command to run with /bin/sh for each alarm; it gets the alarm as JSON on "
                      "standard input and as TYCHO_ALARM_... in its environment");
  command
      ->add_option("--webhook", options->webhook,
                   "URL (http or https) to which each alarm is posted as JSON")
      ->envname("TYCHO_WEBHOOK");
  command
      ->add_option("--alert-from", options->from,
                   "Least severity to report: alarm (the default), or warning (alarms and "
                   "warnings)")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Severity>{
          {"alarm", Severity::kAlarm}, {"warning", Severity::kWarning}}));
  command
      ->add_option_function<double>(
          "--alert-interval",
          [options](double seconds) {
            options->sender.same_alarm =
                std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
          },
          "Seconds before the same alarm of a run is repeated; default 300")
      ->check(CLI::Range(0.0, 1e6));
}

void say_troubles(Alerts* alerts) {
  for (const std::string& trouble : alerts->take_troubles()) say(trouble);
}

}  // namespace tycho::analyzer::command
