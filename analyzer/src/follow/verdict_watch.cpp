#include "verdict_watch.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/printable.h"

namespace tycho::analyzer {

std::vector<VerdictChange> VerdictWatch::look(const std::vector<Finding>& findings, int64_t step) {
  std::vector<VerdictChange> changes;
  for (const Finding& finding : findings) {
    const auto [entry, is_new] = known_.try_emplace({finding.law, finding.scope}, finding.verdict);
    std::optional<Verdict> from;
    if (!is_new) from = entry->second;
    if (from == finding.verdict) continue;
    entry->second = finding.verdict;
    const bool judged = finding.verdict == Verdict::kHolds ||
                        finding.verdict == Verdict::kViolated ||
                        finding.verdict == Verdict::kUnderpowered;
    if (is_new && !judged) continue;
    const auto same =
        std::find_if(changes.begin(), changes.end(), [&](const VerdictChange& change) {
          return change.law == finding.law && change.from == from && change.to == finding.verdict;
        });
    if (same != changes.end()) {
      same->scopes.push_back(finding.scope);
    } else {
      changes.push_back({step, finding.law, from, finding.verdict, {finding.scope}});
    }
  }
  return changes;
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
