#include "report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "layer_names.h"
#include "remarks.h"
#include "report_builder.h"
#include "src/number_text.h"

namespace tycho::analyzer {

const LawDescription* Report::law(const std::string& id) const {
  const auto found = std::find_if(laws.begin(), laws.end(),
                                  [&](const LawDescription& law) { return law.id == id; });
  return found == laws.end() ? nullptr : &*found;
}

std::string Report::layer_label(uint32_t id) const { return layer_name(model, id); }

Result<Report> read_report(const std::string& path,
                           const std::function<void(uint64_t frames)>& progress) {
  auto reader = trace::RunReader::open(path);
  if (!reader.ok()) return reader.status();
  ReportBuilder builder(path);
  uint64_t frames = 0;
  if (progress) {
    builder.add_consumer([&](const RunContext&, const Frame&) {
      if (++frames % 1000 == 0) progress(frames);
    });
  }
  if (Status status = reader.value()->read(builder.handler()); !status.ok()) return status;
  builder.finish();
  builder.update(reader.value()->run(), reader.value()->model(), reader.value()->registry(),
                 reader.value()->segments(), reader.value()->skipped());
  return std::move(builder.report());
}

std::vector<const Finding*> what_to_do(const Report& report) {
  constexpr size_t kMost = 6;
  constexpr double kWorthIt = 0.3;
  std::vector<const Finding*> chosen;
  if (is_broken(remarks(report))) return chosen;
  for (const Finding& finding : report.findings) {
    const bool speaks = finding.verdict == Verdict::kHolds || finding.verdict == Verdict::kViolated;
    // An estimate with its interval may be worth acting upon though the law could not be tested, or
    // has nothing to say yet.
    const bool estimates =
        (finding.verdict == Verdict::kUnderpowered || finding.verdict == Verdict::kNotYet) &&
        std::isfinite(finding.ci_low);
    if ((!speaks && !estimates) || finding.advice.empty() || finding.importance < kWorthIt)
      continue;
    // One scope of a law stands for its peers: the most important comes first.
    const bool said = std::any_of(chosen.begin(), chosen.end(), [&](const Finding* other) {
      return other->law == finding.law && other->verdict == finding.verdict;
    });
    if (!said) chosen.push_back(&finding);
    if (chosen.size() == kMost) break;
  }
  return chosen;
}

std::string titles_of(const Report& report, const std::vector<std::string>& laws) {
  std::string text;
  for (const std::string& id : laws) {
    const LawDescription* law = report.law(id);
    text += (text.empty() ? "" : ", ") + (law != nullptr ? law->title : id);
  }
  return text;
}

std::string short_number(double value) {
  if (std::isnan(value)) return "not known";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return number_text(value, 4);
}

bool shows_numbers(const Finding& finding) { return finding.verdict != Verdict::kNotApplicable; }

std::string evidence(const Finding& finding) {
  if (std::isnan(finding.measured) || !shows_numbers(finding)) return "";
  std::string text = "measured " + short_number(finding.measured);
  if (!std::isnan(finding.ci_low) && !std::isnan(finding.ci_high)) {
    text += fmt::format(" [{}, {}]", short_number(finding.ci_low), short_number(finding.ci_high));
  }
  if (!finding.unit.empty() && finding.unit != "1") text += " " + finding.unit;
  if (!std::isnan(finding.predicted)) {
    text += finding.relation == Relation::kEqual
                ? ", predicted "
                : fmt::format(", predicted {} ", to_string(finding.relation));
    text += short_number(finding.predicted);
  }
  return text;
}

}  // namespace tycho::analyzer
