#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// A law changed its verdict, at one or several scopes at once.
struct VerdictChange {
  int64_t step = -1;
  std::string law;
  std::optional<Verdict> from;  ///< none: the first verdict
  Verdict to = Verdict::kNotYet;
  std::vector<std::string> scopes;
};

/// Compares findings with those before. First verdicts are changes only where something was
/// judged: HOLDS, VIOLATED, UNDERPOWERED. Memory: one entry a law and scope.
class VerdictWatch {
 public:
  /// Changes since the last call, in the order of the findings.
  std::vector<VerdictChange> look(const std::vector<Finding>& findings, int64_t step);

 private:
  std::map<std::pair<std::string, std::string>, Verdict> known_;
};

/// "edge_of_stability: NOT_YET -> HOLDS", "balancedness: UNDERPOWERED -> HOLDS (param:0.weight and
/// 3 more)". Names from a trace are made printable.
std::string to_text(const VerdictChange& change);

}  // namespace tycho::analyzer
