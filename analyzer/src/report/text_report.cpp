#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "cost_text.h"
#include "coverage.h"
#include "curvature.h"
#include "happenings.h"
#include "incident_words.h"
#include "layer_names.h"
#include "remarks.h"
#include "report.h"
#include "text_layout.h"

namespace tycho::analyzer {
namespace {

std::string curvature_section(const Report& report, size_t columns) {
  const Curvature seen = curvature(report);
  if (!seen.any() && report.spectrum.node.empty()) return "";
  std::string out = "\nCurvature, latest measurement\n";
  for (const std::string& line : curvature_lines(seen)) {
    out += "  " + wrap(line, 4, columns) + "\n";
  }
  if (!report.spectrum.node.empty()) {
    const auto [low, high] =
        std::minmax_element(report.spectrum.node.begin(), report.spectrum.node.end());
    out += fmt::format(
        "  spectral density at step {}; each lighter character is ten times "
        "less\n",
        report.spectrum.step);
    out += fmt::format("  {} |{}| {}\n", short_number(*low),
                       density_picture(report.spectrum, columns > 60 ? columns - 30 : 30),
                       short_number(*high));
  }
  return out;
}

std::string happenings_section(const Report& report, size_t columns) {
  constexpr size_t kMostModules = 4;
  std::string out;
  for (const HappeningGroup& group : happening_groups(report)) {
    out += fmt::format("\n{}\n", group.title);
    for (const Happening& each : group.happenings) {
      const std::string place = where(each, kMostModules);
      std::string line =
          fmt::format("{}{}step {}{}", place, place.empty() ? "" : ", ", each.first_step,
                      each.times > 1 ? fmt::format(", {} times", each.times) : "");
      out += "  - " + wrap(fmt::format("{} ({})", each.what, line), 4, columns) + "\n";
      if (!each.remedy.empty()) out += "    " + wrap("-> " + each.remedy, 7, columns) + "\n";
    }
  }
  return out;
}

std::string incidents_section(const Report& report, size_t columns) {
  const std::string missing = no_incident(report);
  if (report.incidents.empty() && missing.empty()) return "";
  std::string out = "\nWhat went wrong\n";
  if (!missing.empty()) out += "  - " + wrap(missing, 4, columns) + "\n";
  for (const Incident& each : report.incidents) {
    const IncidentWords words = describe(report, each);
    out += "  - " + wrap(clean(words.title) + ".", 4, columns) + "\n";
    for (const std::string& sentence : words.sentences)
      out += "    " + wrap(sentence, 4, columns) + "\n";
    for (const IncidentRow& row : words.rows) {
      std::string line = fmt::format("step {}: {} {}", row.step, row.what, row.seen);
      if (!row.usual.empty()) line += fmt::format(", usual {}", row.usual);
      if (!row.spreads.empty()) line += fmt::format(", {} spreads away", row.spreads);
      if (!row.within.empty()) line += "; " + row.within;
      if (!row.note.empty()) line += fmt::format("; {}", row.note);
      out += "      " + wrap(line, 8, columns) + "\n";
    }
    if (words.left_out > 0) out += fmt::format("      and {} more, later\n", words.left_out);
  }
  return out;
}

std::string decisions_section(const Report& report, bool colour, size_t columns) {
  std::string out;
  int number = 0;
  for (const Decision& each : report.decisions) {
    const bool loud = each.severity != Severity::kNote;
    out += fmt::format(
        "  {} {}\n",
        paint(fmt::format("{}.", ++number), loud ? Verdict::kViolated : Verdict::kHolds, colour),
        wrap(clean(each.title), 5, columns));
    out += "     " + wrap(clean(each.because), 5, columns) + "\n";
    out += "     " + wrap("Expected: " + clean(each.expect), 5, columns) + "\n";
    out += "     " + wrap("Refuted by: " + clean(each.refuted_by), 5, columns) + "\n";
    if (const std::string laws = titles_of(report, each.laws); !laws.empty())
      out += "     " + wrap("Laws: " + laws, 5, columns) + "\n";
  }
  return out;
}

}  // namespace

std::string text_report(const Report& report, bool colour, int width) {
  const auto columns = static_cast<size_t>(std::max(width, 40));
  std::string out;
  const std::string name = report.run.run_name().empty() ? report.path : report.run.run_name();
  out += fmt::format("Mechanics report of {}\n", clean(name));
  out += report.frames == 0 ? std::string("no step was observed")
                            : fmt::format("{} observed steps ({} to {})", report.frames,
                                          report.first_step, report.last_step);
  out += fmt::format(", {} layers, {} parameters{}\n\n", report.model.layer_size(),
                     report.model.parameter_size(),
                     report.run.optimizer().empty() ? "" : ", " + clean(report.run.optimizer()));
  out += "In short\n";
  for (const std::string& text : in_short(report)) out += "  - " + wrap(text, 4, columns) + "\n";
  out += incidents_section(report, columns);
  out += "\nWhat to do\n";
  const auto important = what_to_do(report);
  const auto known = remarks(report);
  out += decisions_section(report, colour, columns);
  if (important.empty() && known.empty() && report.decisions.empty())
    out += "  " + wrap(nothing_to_do(report), 2, columns) + "\n";
  for (const Remark& remark : without_decided(known, report)) {
    const bool loud = remark.severity != Severity::kNote;
    out += fmt::format("  {} {} ({})\n    {}\n",
                       paint(loud ? "!" : "*", loud ? Verdict::kViolated : Verdict::kHolds, colour),
                       remark.title, to_string(remark.severity), wrap(remark.text, 4, columns));
  }
  if (is_broken(known)) {
    out += "  " +
           wrap(
               "The laws below were judged on everything recorded, including broken steps: no "
               "advice is taken from them.",
               2, columns) +
           "\n";
  }
  for (const Finding* finding : important) {
    const LawDescription* law = report.law(finding->law);
    out +=
        fmt::format("  {} {} ({}): {}\n", paint(mark(finding->verdict), finding->verdict, colour),
                    law ? law->title : finding->law,
                    clean(scope_label(report.model, finding->scope)), to_string(finding->verdict));
    out += "    " + wrap(finding->advice, 4, columns) + "\n";
    if (const std::string seen = evidence(*finding); !seen.empty())
      out += "    " + wrap(seen + report.verdict_times.text(*finding), 4, columns) + "\n";
  }
  const auto missing = what_is_missing(report);
  if (!missing.empty()) {
    out += "\nNot known yet\n";
    for (const std::string& text : missing) out += "  - " + wrap(text, 4, columns) + "\n";
  }
  out += curvature_section(report, columns);
  out += "\nThe five lines of learning mechanics\n";
  for (const Line line : {Line::kSolvableSettings, Line::kSimplifyingLimits, Line::kEmpiricalLaws,
                          Line::kHyperparameters, Line::kUniversalPhenomena}) {
    std::string rows;
    for (const LawDescription& law : report.laws) {
      if (law.line != line) continue;
      std::map<Verdict, int> counts;
      const Finding* run = nullptr;
      for (const Finding& finding : report.findings) {
        if (finding.law != law.id) continue;
        ++counts[finding.verdict];
        if (finding.scope == "run") run = &finding;
      }
      std::string verdicts;
      for (const auto& [verdict, count] : counts) {
        const std::string text =
            count == 1 ? to_string(verdict) : fmt::format("{} x{}", to_string(verdict), count);
        verdicts += (verdicts.empty() ? "" : ", ") + paint(text, verdict, colour);
      }
      rows += fmt::format("    {:<36} {}\n", law.title, verdicts.empty() ? "no finding" : verdicts);
      if (run != nullptr) {
        if (const std::string seen = evidence(*run); !seen.empty())
          rows += fmt::format("      run: {}{}\n", seen, report.verdict_times.text(*run));
      }
    }
    out += fmt::format("  {}\n{}", to_string(line),
                       rows.empty() ? "    no law of this line is implemented yet\n" : rows);
  }
  out += "\nWhat was lost\n";
  if (!report.has_loss()) out += "  " + wrap(no_known_loss(report), 2, columns) + "\n";
  for (const std::string& loss : trace::losses(report.segments, report.skipped))
    out += "  " + wrap(loss, 4, columns) + "\n";
  if (report.health.messages_dropped() > 0) {
    out += fmt::format("  {} messages were dropped while the run was recorded.\n",
                       report.health.messages_dropped());
  }
  if (report.health.write_failures() > 0) {
    out += "  " +
           wrap(fmt::format("Writing failed {} times; the last failure: {}",
                            report.health.write_failures(), report.health.last_write_failure()),
                2, columns) +
           "\n";
  }
  out += happenings_section(report, columns);
  out += "\nWhat Tycho cost\n";
  out += "  " + wrap(cost_text(report.health), 2, columns) + "\n";
  return out;
}

}  // namespace tycho::analyzer
