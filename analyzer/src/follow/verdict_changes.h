#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tycho/analyzer/live_finding.h"

namespace tycho::analyzer {

/// A law changed its verdict, at one or several scopes at once.
struct VerdictChange {
  int64_t step = -1;
  std::string law;
  std::optional<Verdict> from;  ///< none: the first verdict
  Verdict to = Verdict::kNotYet;
  std::vector<std::string> scopes;
};

/// Adds what a LiveJudge says of a verdict to the last change, where it is the same of another
/// scope, or behind it. That theory does not speak about a run is no change.
void add_change(const LiveFinding& finding, std::vector<VerdictChange>* changes);

/// "edge_of_stability: NOT_YET -> HOLDS", "balancedness: UNDERPOWERED -> HOLDS (param:0.weight and
/// 3 more)". Names from a trace are made printable.
std::string to_text(const VerdictChange& change);

}  // namespace tycho::analyzer
