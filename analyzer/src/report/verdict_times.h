#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "tycho/analyzer/finding_message.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// When verdicts became known while the run was going on: what the judge in the trainer said, and
/// when, from its messages in the trace. Memory is bounded by laws and scopes; a trace that names
/// more than kMost is heard no further.
class VerdictTimes {
 public:
  static constexpr size_t kMost = 200'000;

  void observe(const v1::Finding& message);
  /// The step at which this verdict was reached the last time, from where on it stayed. Nothing
  /// where the trace does not say: nobody listened, the run was resumed before that step, or the
  /// trainer said something else last, which it may have judged by fewer observations.
  std::optional<int64_t> since(const Finding& finding) const;
  /// ", known since step 120"; empty where that is not known.
  std::string text(const Finding& finding) const;

 private:
  struct Known {
    Verdict verdict;
    int64_t step;
  };
  std::map<std::pair<std::string, std::string>, Known> known_;  // by law and scope
};

}  // namespace tycho::analyzer
