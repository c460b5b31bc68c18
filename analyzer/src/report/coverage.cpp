#include "coverage.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>

namespace tycho::analyzer {
namespace {

bool is_tested(Verdict verdict) {
  return verdict == Verdict::kHolds || verdict == Verdict::kViolated;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

/// "1 does", "3 do".
std::string counted(size_t count, const char* one, const char* many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

/// "1 of 28 laws", or the one law where there is no other.
std::string tested_of(const Coverage& seen) {
  return seen.laws == 1 ? "the only law" : fmt::format("{} of {} laws", seen.tested, seen.laws);
}

/// What became of the laws that were not tested: one clause for each kind there is.
std::vector<std::string> untested_clauses(const Coverage& seen, const std::string& take_what) {
  std::vector<std::string> clauses;
  const size_t open = seen.laws - seen.tested - seen.not_applicable;
  if (seen.not_applicable > 0)
    clauses.push_back(counted(seen.not_applicable, "does", "do") + " not apply to this run");
  if (open > 0) clauses.push_back(counted(open, "needs", "need") + " " + take_what);
  return clauses;
}

/// What says why a law with this verdict was not tested; nullptr: nothing.
const Finding* reason_of(const Report& report, const LawDescription& law, Verdict verdict) {
  const Finding* chosen = nullptr;
  for (const Finding& finding : report.findings) {
    if (finding.law != law.id || finding.verdict != verdict || finding.gate.empty()) continue;
    if (chosen == nullptr || finding.scope == "run") chosen = &finding;
  }
  return chosen;
}

/// Adds a title to the entry of a list that `is` finds, or to a new one.
template <typename Entry, typename Is>
void add_title(std::vector<Entry>* list, const Is& is, const std::string& key,
               const std::string& title) {
  const auto known = std::find_if(list->begin(), list->end(), is);
  if (known != list->end()) {
    known->laws.push_back(title);
  } else {
    list->push_back({key, {title}});
  }
}

}  // namespace

Verdict summary_verdict(const Report& report, const LawDescription& law) {
  std::map<Verdict, int> counts;
  const Finding* run = nullptr;
  for (const Finding& finding : report.findings) {
    if (finding.law != law.id) continue;
    ++counts[finding.verdict];
    if (finding.scope == "run") run = &finding;
  }
  if (run != nullptr && is_tested(run->verdict)) return run->verdict;
  if (counts.count(Verdict::kViolated) > 0) return Verdict::kViolated;
  if (counts.count(Verdict::kHolds) > 0) return Verdict::kHolds;
  if (run != nullptr) return run->verdict;
  if (counts.empty()) return Verdict::kNotApplicable;
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

Coverage coverage(const Report& report) {
  Coverage result;
  result.laws = report.laws.size();
  for (const LawDescription& law : report.laws) {
    const Verdict verdict = summary_verdict(report, law);
    if (is_tested(verdict)) {
      ++result.tested;
      if (verdict == Verdict::kViolated) result.violated.push_back(law.title);
      continue;
    }
    if (verdict == Verdict::kNotApplicable) {
      ++result.not_applicable;
      continue;
    }
    const Finding* finding = reason_of(report, law, verdict);
    if (finding != nullptr && !finding->deferred.empty()) {
      const std::string& statistic = finding->deferred;
      const auto is = [&](const Deferred& each) { return each.statistic == statistic; };
      add_title(&result.deferred, is, statistic, law.title);
      continue;
    }
    const std::string reason = finding != nullptr ? finding->gate
                                                  : "none of its statistics was "
                                                    "recorded";
    const auto is = [&](const Untested& each) { return each.reason == reason; };
    add_title(&result.untested, is, reason, law.title);
  }
  return result;
}

std::string laws_sentence(const Report& report) {
  const Coverage seen = coverage(report);
  std::string text;
  if (seen.tested == 0) {
    text = seen.laws == 1 ? "The only law could not be tested"
                          : fmt::format("None of {} laws could be tested", seen.laws);
  } else {
    const size_t hold = seen.tested - seen.violated.size();
    text = tested_of(seen) + " could be tested: " + counted(hold, "holds", "hold");
    text.front() = static_cast<char>(std::toupper(static_cast<unsigned char>(text.front())));
    if (!seen.violated.empty()) {
      text += fmt::format(", {} violated ({})", counted(seen.violated.size(), "is", "are"),
                          joined(seen.violated));
    }
  }
  for (const std::string& clause :
       untested_clauses(seen, "more steps or statistics than were recorded"))
    text += "; " + clause;
  return text + ".";
}

std::vector<std::string> what_is_missing(const Report& report) {
  std::vector<std::string> result;
  const Coverage seen = coverage(report);
  for (const Untested& each : seen.untested)
    result.push_back(fmt::format("{}: {}.", joined(each.laws), each.reason));
  if (!seen.deferred.empty()) {
    std::vector<std::string> statistics;
    for (const Deferred& each : seen.deferred)
      statistics.push_back(fmt::format("{} ({})", each.statistic, joined(each.laws)));
    const auto budget = report.run.options().find("overhead_budget");
    result.push_back(fmt::format(
        "Not due within the overhead budget{}: {}. A longer run or a larger budget records "
        "them; SessionOptions::every(\"{}\", 50) requests one whatever it costs.",
        budget == report.run.options().end() ? "" : " of " + budget->second, joined(statistics),
        seen.deferred.front().statistic));
  }
  if (report.other_reference > 0) {
    result.push_back(
        fmt::format("Resumed: {} records of changes since the first observation are relative to "
                    "the step at which the run was resumed, not to its start, and were not used.",
                    report.other_reference));
  }
  return result;
}

std::string nothing_to_do(const Report& report) {
  if (report.frames == 0) return "No step was observed, so nothing can be said.";
  const Coverage seen = coverage(report);
  const std::string steps =
      fmt::format("{} observed {}", report.frames, report.frames == 1 ? "step" : "steps");
  if (seen.tested == 0) {
    return fmt::format(
        "It is not known whether anything should change: in {} no law could be tested. All that "
        "can be said is that every number checked was finite{}.",
        steps, report.loss.observed() == 0 ? ", and the loss was not recorded" : "");
  }
  std::string text = fmt::format(
      "Nothing that was checked calls for a change: in {}, {} could be tested and {} violated.",
      steps, tested_of(seen), seen.tested == 1 ? "was not" : "none of them was");
  if (seen.tested == seen.laws) return text;
  const size_t others = seen.laws - seen.tested;
  std::string clauses;
  for (const std::string& clause : untested_clauses(seen, "more than was recorded"))
    clauses += (clauses.empty() ? "" : ", ") + clause;
  return text + fmt::format(" Nothing is known about the other{}: {}.",
                            others == 1 ? "" : fmt::format(" {}", others), clauses);
}

}  // namespace tycho::analyzer
