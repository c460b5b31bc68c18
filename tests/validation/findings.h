#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tycho/analyzer/engine.h"

namespace tycho::analyzer {

/// The finding of `law` at `scope`; a failure of the test, and an empty one, where there is none.
inline Finding find(const std::vector<Finding>& findings, const std::string& law,
                    const std::string& scope) {
  for (const Finding& finding : findings) {
    if (finding.law == law && finding.scope == scope) return finding;
  }
  ADD_FAILURE() << "no finding of " << law << " at " << scope;
  return {};
}

inline std::string verdict(const Finding& finding) { return to_string(finding.verdict); }

}  // namespace tycho::analyzer
