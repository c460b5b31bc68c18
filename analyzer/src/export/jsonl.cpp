#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "value_stream.h"

namespace tycho::analyzer {
namespace {

nlohmann::json number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

}  // namespace

Result<ExportOutcome> export_jsonl(const std::string& run, std::FILE* out) {
  bool written = true;
  auto outcome = for_each_value(run, [&](const Value& value) {
    nlohmann::ordered_json object = {
        {"step", value.step}, {"scope", *value.scope}, {"statistic", *value.statistic}};
    object["value"] = number(value.value);
    if (!std::isnan(value.standard_error)) object["stderr"] = number(value.standard_error);
    const std::string line =
        object.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";
    written = written && std::fwrite(line.data(), 1, line.size(), out) == line.size();
    return written;
  });
  if (outcome.ok() && (!written || std::fflush(out) != 0)) return write_failure();
  return outcome;
}

}  // namespace tycho::analyzer
