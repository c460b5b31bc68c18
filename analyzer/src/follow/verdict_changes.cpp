#include "verdict_changes.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/printable.h"

namespace tycho::analyzer {

void add_change(const LiveFinding& finding, std::vector<VerdictChange>* changes) {
  if (finding.kind != LiveFinding::Kind::kVerdict) return;
  if (!finding.before && finding.verdict == Verdict::kNotApplicable) return;
  // Those of a step stand together, by importance and not by law.
  for (auto known = changes->rbegin(); known != changes->rend() && known->step == finding.step;
       ++known) {
    if (known->law != finding.law || known->from != finding.before || known->to != finding.verdict)
      continue;
    known->scopes.push_back(finding.scope);
    return;
  }
  changes->push_back({finding.step, finding.law, finding.before, finding.verdict, {finding.scope}});
}

std::string to_text(const VerdictChange& change) {
  std::string where;
  if (change.scopes.size() != 1 || change.scopes.front() != "run") {
    where = " (" + printable(change.scopes.front());
    if (change.scopes.size() > 1) where += fmt::format(" and {} more", change.scopes.size() - 1);
    where += ")";
  }
  return fmt::format("{}: {} -> {}{}", change.law, change.from ? to_string(*change.from) : "(new)",
                     to_string(change.to), where);
}

}  // namespace tycho::analyzer
