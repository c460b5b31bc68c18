#include "tycho/analyzer/live_finding.h"

#include <fmt/format.h>

#include "src/printable.h"

namespace tycho::analyzer {

std::string describe(const LiveFinding& finding) {
  const std::string where = printable(finding.law + " " + finding.scope);
  switch (finding.kind) {
    case LiveFinding::Kind::kVerdict:
      return fmt::format("step {}: {}: {} -> {}", finding.step, where,
                         finding.before ? to_string(*finding.before) : "(new)",
                         to_string(finding.verdict));
    case LiveFinding::Kind::kAlarm:
      return fmt::format("step {}: {}: {}: {}", finding.step, to_string(finding.severity), where,
                         printable(finding.title));
    case LiveFinding::Kind::kAlarmOver:
      return fmt::format("step {}: over: {}: {}", finding.step, where, printable(finding.title));
  }
  return "";
}

}  // namespace tycho::analyzer
