#include "alert.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/printable.h"
#include "src/report/json_parts.h"

namespace tycho::analyzer {
namespace {

using nlohmann::json;

// The kernel refuses a string of more than 128 KiB.
constexpr size_t kLongestValue = 4000;

std::string variable(const char* name, const std::string& value) {
  return std::string("TYCHO_ALARM_") + name + "=" + printable(value).substr(0, kLongestValue);
}

std::string text_of(double value) { return std::isnan(value) ? "" : fmt::format("{}", value); }
std::string text_of(int64_t step) { return step < 0 ? "" : std::to_string(step); }
json step_json(int64_t step) { return step < 0 ? json(nullptr) : json(step); }

}  // namespace

std::string alert_json(const Alert& alert) {
  const json object = {{"run", alert.run},
                       {"path", alert.path},
                       {"id", alert.id},
                       {"state", alert.state},
                       {"code", alert.code},
                       {"severity", to_string(alert.severity)},
                       {"title", alert.title},
                       {"text", alert.text},
                       {"scope", alert.scope},
                       {"step", step_json(alert.step)},
                       {"value", number(alert.value)},
                       {"last_step", step_json(alert.last_step)},
                       {"loss", number(alert.loss)},
                       {"left_out", alert.left_out}};
  return object.dump(-1, ' ', true, json::error_handler_t::replace);
}

std::vector<std::string> alert_environment(const Alert& alert) {
  return {variable("CODE", alert.code),
          variable("SEVERITY", to_string(alert.severity)),
          variable("TITLE", alert.title),
          variable("TEXT", alert.text),
          variable("SCOPE", alert.scope),
          variable("STEP", text_of(alert.step)),
          variable("VALUE", text_of(alert.value)),
          variable("RUN", alert.run),
          variable("PATH", alert.path),
          variable("ID", alert.id),
          variable("STATE", alert.state),
          variable("LAST_STEP", text_of(alert.last_step)),
          variable("LOSS", text_of(alert.loss))};
}

}  // namespace tycho::analyzer
