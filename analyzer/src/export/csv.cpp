#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <string_view>

#include "src/printable.h"
#include "value_stream.h"

namespace tycho::analyzer {
namespace {

void append_field(const std::string& raw, fmt::memory_buffer* out) {
  std::string text = printable(raw, "\t\r\n");
  if (!text.empty() && std::string_view("=+-@\t\r\n").find(text[0]) != std::string_view::npos)
    text.insert(0, "'");
  if (text.find_first_of(",;\"\t\r\n") == std::string::npos) {
    out->append(text.data(), text.data() + text.size());
    return;
  }
  out->push_back('"');
  for (const char c : text) {
    if (c == '"') out->push_back('"');
    out->push_back(c);
  }
  out->push_back('"');
}

// A NaN has no sign that means anything.
void append_number(double value, fmt::memory_buffer* out) {
  if (std::isnan(value)) value = std::numeric_limits<double>::quiet_NaN();
  fmt::format_to(std::back_inserter(*out), "{:.17g}", value);
}

}  // namespace

Result<ExportOutcome> export_csv(const std::string& run, std::FILE* out) {
  bool written = std::fputs("step,scope,statistic,value,stderr\n", out) >= 0;
  fmt::memory_buffer line;
  auto outcome = for_each_value(run, [&](const Value& value) {
    line.clear();
    fmt::format_to(std::back_inserter(line), "{},", value.step);
    append_field(*value.scope, &line);
    line.push_back(',');
    append_field(*value.statistic, &line);
    line.push_back(',');
    append_number(value.value, &line);
    line.push_back(',');
    if (!std::isnan(value.standard_error)) append_number(value.standard_error, &line);
    line.push_back('\n');
    written = written && std::fwrite(line.data(), 1, line.size(), out) == line.size();
    return written;
  });
  if (outcome.ok() && (!written || std::fflush(out) != 0)) return write_failure();
  return outcome;
}

}  // namespace tycho::analyzer
