#pragma once

#include <string>
#include <vector>

#include "report.h"

namespace tycho::analyzer {

/// Something a reader should know that needs no law: numbers that are not finite, dead units, what
/// was lost.
struct Remark {
  std::string title;
  std::string text;
  std::string statistic;  ///< of the chart that shows it; may be empty
  std::string scope;
};

/// The most serious first.
std::vector<Remark> remarks(const Report& report);

/// What is not known yet, by law, and what it would take: one sentence each.
std::vector<std::string> what_is_missing(const Report& report);

/// Where there are neither remarks nor findings to act upon: what that rests on.
std::string nothing_to_do(const Report& report);

/// One verdict for a law: that of the run where there is one, else violated if any part is, else
/// what holds, else the most frequent.
Verdict summary_verdict(const Report& report, const LawDescription& law);

}  // namespace tycho::analyzer
