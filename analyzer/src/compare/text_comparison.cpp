#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "src/compare/comparison.h"
#include "src/report/report.h"
#include "src/report/text_layout.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kMostRows = 40;

std::string position_text(double value, Alignment by) {
  if (std::isnan(value)) return "not known";
  return by == Alignment::kTime ? fmt::format("{:.3g} s", value) : fmt::format("{:.0f}", value);
}

/// "128 (2 runs), 256 (2 runs)": what a setting is, and how often.
std::string values_of(const Difference& difference) {
  std::vector<std::string> order;
  for (const std::string& value : difference.value) {
    if (std::find(order.begin(), order.end(), value) == order.end()) order.push_back(value);
  }
  std::stable_sort(order.begin(), order.end(), [](const std::string& a, const std::string& b) {
    if (is_number(a) != is_number(b)) return is_number(a);
    return is_number(a) && std::strtod(a.c_str(), nullptr) < std::strtod(b.c_str(), nullptr);
  });
  constexpr size_t kMostValues = 12;
  std::string out;
  for (size_t i = 0; i < order.size() && i < kMostValues; ++i) {
    const auto count = std::count(difference.value.begin(), difference.value.end(), order[i]);
    out += i > 0 ? ", " : "";
    out += order[i].empty() ? "none" : order[i];
    if (count > 1) out += fmt::format(" ({} runs)", count);
  }
  if (order.size() > kMostValues) out += fmt::format(" and {} more", order.size() - kMostValues);
  return out;
}

}  // namespace

std::string text_comparison(const Comparison& comparison, bool colour, int width) {
  const auto columns = static_cast<size_t>(std::max(width, 40));
  const RunSet& set = comparison.set;
  std::string out =
      fmt::format("Comparison of {} runs in {} {}, by {}\n\n", set.runs().size(), set.groups(),
                  set.groups() == 1 ? "group" : "groups", to_string(comparison.options.by));
  out += "What to do\n";
  const auto important = what_to_do(comparison);
  if (important.empty()) out += "  " + wrap(nothing_to_do(comparison), 2, columns) + "\n";
  for (const ComparisonFinding* finding : important) {
    const LawDescription* law = comparison.law(finding->law);
    out += fmt::format("  {} {}: {}\n", paint(mark(finding->verdict), finding->verdict, colour),
                       law != nullptr ? law->title : finding->law, to_string(finding->verdict));
    out += "    " + wrap(finding->advice, 4, columns) + "\n";
    if (const std::string seen = evidence(*finding); !seen.empty())
      out += "    " + wrap(seen, 4, columns) + "\n";
    out += "    " + wrap(where(comparison, *finding), 4, columns) + "\n";
  }
  out += "\nSweeps\n";
  const auto found = sweeps(set);
  if (found.empty()) out += "  None was recognised.\n";
  for (const Ladder& ladder : found) out += "  " + wrap(ladder.describe(), 4, columns) + "\n";
  out += "\nLaws over these runs\n";
  for (const LawDescription& law : comparison.laws) {
    const Verdict verdict = summary_verdict(comparison, law);
    out += fmt::format("  {:<40} {}\n", law.title, paint(to_string(verdict), verdict, colour));
    for (const ComparisonFinding& finding : comparison.findings) {
      if (finding.law != law.id || finding.scope != "runs") continue;
      std::string says = evidence(finding);
      if (finding.verdict == Verdict::kNotApplicable || says.empty()) says = finding.gate;
      if (!finding.sweep.empty()) says = finding.sweep + ": " + says;
      out += "    " + wrap(says, 4, columns) + "\n";
    }
  }
  out += "\nThe runs\n";
  const Outcomes ends = outcomes(comparison);
  const std::string at = fmt::format("at {} {}", to_string(comparison.options.by),
                                     position_text(ends.common_end, comparison.options.by));
  out += fmt::format("  {:<44} {:>12} {:>12} {:>12}\n", "run", to_string(comparison.options.by),
                     ends.statistic, at);
  for (size_t r = 0; r < set.runs().size() && r < kMostRows; ++r) {
    const Outcome& end = ends.run[r];
    std::string label = clean(set.label(r));
    if (label.size() > 44) label = label.substr(0, 41) + "...";
    out += fmt::format("  {:<44} {:>12} {:>12} {:>12}\n", label,
                       position_text(end.end, comparison.options.by), short_number(end.loss),
                       short_number(end.common_loss));
  }
  if (set.runs().size() > kMostRows)
    out += fmt::format("  and {} more\n", set.runs().size() - kMostRows);
  out += "\nWhat differs\n";
  if (set.differences().empty()) out += "  Nothing that the traces record.\n";
  size_t shapes = 0;
  for (const Difference& difference : set.differences()) {
    if (difference.kind == SettingKind::kShape && ++shapes > 3) continue;
    out += "  " + wrap(difference.name + ": " + values_of(difference), 4, columns) + "\n";
  }
  if (shapes > 3) out += fmt::format("  and {} more extents of the model\n", shapes - 3);
  out += "\nWhat was left out\n";
  if (set.left_out().empty() && set.notes().empty()) out += "  Nothing.\n";
  for (const LeftOut& left : set.left_out())
    out += "  " + wrap(left.path + ": " + left.why, 4, columns) + "\n";
  for (const std::string& note : set.notes()) out += "  " + wrap(note, 4, columns) + "\n";
  return out;
}

}  // namespace tycho::analyzer
