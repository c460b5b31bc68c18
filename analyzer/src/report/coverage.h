#pragma once

#include <string>
#include <vector>

#include "report.h"

namespace tycho::analyzer {

/// Laws that could not be tested for one reason.
struct Untested {
  std::string reason;             ///< the gate, in words
  std::vector<std::string> laws;  ///< titles
};

/// Laws that wait for a statistic which the overhead budget did not allow.
struct Deferred {
  std::string statistic;
  std::vector<std::string> laws;  ///< titles
};

/// How much of what could be known is known.
struct Coverage {
  size_t laws = 0;
  size_t tested = 0;                  ///< HOLDS or VIOLATED at any scope
  size_t not_applicable = 0;          ///< theory does not speak about this run
  std::vector<std::string> violated;  ///< titles
  std::vector<Untested> untested;     ///< those that more steps or statistics could test, by reason
  std::vector<Deferred> deferred;     ///< those that a longer run or a larger budget could test
};

Coverage coverage(const Report& report);

/// One verdict for a law: that of the run where it was tested there, else violated if any part is,
/// else what holds, else that of the run or the most frequent.
Verdict summary_verdict(const Report& report, const LawDescription& law);

/// "3 of 28 laws could be tested: 2 hold, 1 is violated (...); 20 do not apply, 5 ...". One
/// sentence.
std::string laws_sentence(const Report& report);

/// What is not known, and what it would take: one sentence for each reason.
std::vector<std::string> what_is_missing(const Report& report);

/// Where neither remarks nor findings ask for something: what that rests on, and what is not known.
std::string nothing_to_do(const Report& report);

}  // namespace tycho::analyzer
