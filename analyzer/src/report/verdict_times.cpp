#include "verdict_times.h"

#include <fmt/format.h>

namespace tycho::analyzer {

void VerdictTimes::observe(const v1::Finding& message) {
  if (message.kind() != v1::Finding::VERDICT) return;
  const Verdict verdict = from_message(message).verdict;
  std::pair<std::string, std::string> key(message.law(), message.scope());
  const auto found = known_.find(key);
  if (found == known_.end()) {
    if (known_.size() < kMost) known_.emplace(std::move(key), Known{verdict, message.step()});
  } else if (found->second.verdict != verdict) {
    // A session that was resumed says again what was said before it.
    found->second = {verdict, message.step()};
  }
}

std::optional<int64_t> VerdictTimes::since(const Finding& finding) const {
  const auto found = known_.find({finding.law, finding.scope});
  if (found == known_.end() || found->second.verdict != finding.verdict) return std::nullopt;
  return found->second.step;
}

std::string VerdictTimes::text(const Finding& finding) const {
  const auto step = since(finding);
  return step ? fmt::format(", known since step {}", *step) : "";
}

}  // namespace tycho::analyzer
