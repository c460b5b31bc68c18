#include "alert_options.h"

#include <map>

#include "command.h"

namespace tycho::analyzer::command {

void add_alert_options(CLI::App* command, AlertOptions* options) {
  command->add_option("--on-alarm", options->command,
                      "Run this by /bin/sh for each alarm; the alarm is JSON on its standard input "
                      "and TYCHO_ALARM_... in its environment");
  command
      ->add_option("--webhook", options->webhook,
                   "Post each alarm as JSON to this http:// or https:// address")
      ->envname("TYCHO_WEBHOOK");
  command
      ->add_option("--alert-from", options->from,
                   "What these are told of: alarm (the default), or warning: alarms and warnings")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Severity>{
          {"alarm", Severity::kAlarm}, {"warning", Severity::kWarning}}));
  command
      ->add_option_function<double>(
          "--alert-interval",
          [options](double seconds) {
            options->sender.same_alarm =
                std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
          },
          "The same alarm of a run is not told again within so many seconds; default 300")
      ->check(CLI::Range(0.0, 1e6));
}

void say_troubles(Alerts* alerts) {
  for (const std::string& trouble : alerts->take_troubles()) say(trouble);
}

}  // namespace tycho::analyzer::command
