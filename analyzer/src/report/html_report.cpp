#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "coverage.h"
#include "curvature.h"
#include "html_sections.h"
#include "incident_words.h"
#include "layer_names.h"
#include "remarks.h"
#include "report.h"
#include "src/page/html_parts.h"

namespace tycho::analyzer {

namespace assets {
extern const char* const series_js;
extern const char* const heat_js;
extern const char* const layers_js;
extern const char* const page_js;
extern const char* const dygraph_js;
extern const char* const dygraph_css;
extern const char* const dygraph_license;
}  // namespace assets

namespace {

std::string title_of(const Report& report, const Finding& finding) {
  const LawDescription* law = report.law(finding.law);
  return law != nullptr ? law->title : finding.law;
}

// Only where there is something to see.
std::string chart_link(const Report& report, const std::string& statistic,
                       const std::string& scope) {
  const v1::Scope kind = scope == "run"                  ? v1::SCOPE_RUN
                         : scope.rfind("layer:", 0) == 0 ? v1::SCOPE_LAYER
                         : scope.rfind("index:", 0) == 0 ? v1::SCOPE_INDEX
                                                         : v1::SCOPE_PARAMETER;
  const auto& recorded = report.series.recorded();
  const auto has = [&](v1::Scope at) {
    return std::any_of(recorded.begin(), recorded.end(), [&](const auto& entry) {
      return entry.first.statistic == statistic && entry.first.scope == at;
    });
  };
  if (statistic.empty() || (!has(kind) && kind != v1::SCOPE_RUN)) return "";
  if (!has(kind) && !has(v1::SCOPE_LAYER) && !has(v1::SCOPE_PARAMETER) && !has(v1::SCOPE_INDEX))
    return "";
  return fmt::format(
      " <a class=\"noprint\" href=\"#views\" data-statistic=\"{}\" data-scope=\"{}\">see the "
      "chart</a>",
      escape(statistic), escape(scope));
}

std::string shown(const Finding& finding, const std::string& number) {
  return shows_numbers(finding) ? number : "";
}

std::string finding_row(const Report& report, const Finding& finding) {
  std::string since;
  if (const auto step = report.verdict_times.since(finding))
    since = fmt::format("<br><span class=\"muted\">since step {}</span>", *step);
  return fmt::format(
      "<tr><td class=\"name\">{}</td><td>{}</td><td class=\"number\">{}</td><td "
      "class=\"number\">{}</td>"
      "<td class=\"number\">{}</td><td>{}{}</td></tr>\n",
      escape(scope_label(report.model, finding.scope)), badge(finding.verdict) + since,
      shown(finding, optional_number(finding.measured)), shown(finding, interval(finding)),
      shown(finding, (finding.relation == Relation::kEqual || std::isnan(finding.predicted)
                          ? ""
                          : std::string(to_string(finding.relation)) + " ") +
                         optional_number(finding.predicted)),
      escape(finding.advice.empty() ? finding.gate : finding.advice),
      chart_link(report, finding.evidence_statistic, finding.scope));
}

std::string remark_card(const Report& report, const Remark& remark) {
  return fmt::format(
      "<article class=\"card {}\"><h3>{} <span class=\"muted\">{}</span></h3><p>{}</p><p "
      "class=\"evidence\">{}</p></article>\n",
      to_string(remark.severity), escape(remark.title), to_string(remark.severity),
      escape(remark.text), chart_link(report, remark.statistic, remark.scope));
}

std::string decision_card(const Report& report, const Decision& decision, int number) {
  const std::string laws = titles_of(report, decision.laws);
  return fmt::format(
      "<article class=\"card {}\" id=\"decision-{}\"><h3>{}. {}</h3><p>{}</p><p><b>Expected:</b> "
      "{}</p><p class=\"muted\"><b>Refuted by:</b> {}</p><p "
      "class=\"evidence\">{}{}</p></article>\n",
      to_string(decision.severity), escape(decision.code), number, escape(decision.title),
      escape(decision.because), escape(decision.expect), escape(decision.refuted_by),
      laws.empty() ? "" : "Laws: " + escape(laws) + ".",
      chart_link(report, decision.statistic, decision.scope));
}

std::string what_to_do_section(const Report& report) {
  std::string out = "<section id=\"to-do\"><h2>What to do</h2>\n";
  const auto important = what_to_do(report);
  const auto known = remarks(report);
  const std::vector<Decision>& decided = report.decisions;
  const bool nothing = important.empty() && known.empty() && decided.empty();
  if (!nothing) out += "<div class=\"cards\">\n";
  for (size_t i = 0; i < decided.size(); ++i)
    out += decision_card(report, decided[i], static_cast<int>(i) + 1);
  for (const Remark& remark : without_decided(known, report)) out += remark_card(report, remark);
  for (const Finding* finding : important) {
    out += fmt::format(
        "<article class=\"card {}\"><h3>{} <span class=\"muted\">{}</span></h3><p>{}</p><p "
        "class=\"evidence\">{} {}{}</p></article>\n",
        to_string(finding->verdict), escape(title_of(report, *finding)),
        escape(scope_label(report.model, finding->scope)), escape(finding->advice),
        badge(finding->verdict), escape(evidence(*finding) + report.verdict_times.text(*finding)),
        chart_link(report, finding->evidence_statistic, finding->scope));
  }
  if (!nothing) out += "</div>\n";
  if (is_broken(known)) {
    out +=
        "<p>The laws below were judged on everything recorded, including broken steps: no "
        "advice is taken from them.</p>\n";
  } else if (nothing) {
    out += "<p>" + escape(nothing_to_do(report)) + "</p>\n";
  }
  const auto missing = what_is_missing(report);
  if (!missing.empty())
    out += "<details><summary>What is not known yet, and why</summary>" + bullets(missing) +
           "</details>\n";
  return out + "</section>\n";
}

// The row that stands for a law on the closed page: the run's, or of the parts the most important.
const Finding* spokesman(const Report& report, const LawDescription& law) {
  const Verdict verdict = summary_verdict(report, law);
  const Finding* chosen = nullptr;
  for (const Finding& finding : report.findings) {
    if (finding.law != law.id) continue;
    if (finding.scope == "run") return &finding;
    if (chosen == nullptr && finding.verdict == verdict) chosen = &finding;
  }
  return chosen;
}

std::string law_block(const Report& report, const LawDescription& law) {
  std::map<Verdict, int> counts;
  std::vector<const Finding*> findings;
  for (const Finding& finding : report.findings) {
    if (finding.law != law.id) continue;
    ++counts[finding.verdict];
    findings.push_back(&finding);
  }
  const Verdict verdict = summary_verdict(report, law);
  const Finding* run = spokesman(report, law);
  std::string says;
  if (run != nullptr) {
    const std::string seen = evidence(*run);
    const bool speaks = run->verdict == Verdict::kHolds || run->verdict == Verdict::kViolated;
    says = speaks && !seen.empty() ? seen : run->gate;
    if (run->scope != "run") says = scope_label(report.model, run->scope) + ": " + says;
  }
  std::string out = law_head(law, verdict, verdict == Verdict::kViolated, says);
  if (findings.size() > 1) {
    out += "<p>";
    for (const auto& [of, count] : counts) out += badge(of, count) + " ";
    out += "</p>\n";
  }
  if (!findings.empty()) {
    out += kFindingHead;
    const size_t most = rows_per_law(report.laws.size());
    for (size_t i = 0; i < findings.size() && i < most; ++i)
      out += finding_row(report, *findings[i]);
    out += "</tbody></table>\n";
    if (findings.size() > most) {
      out += fmt::format("<p class=\"muted\">and {} more, in the JSON report.</p>\n",
                         findings.size() - most);
    }
  }
  return out + law_footer(law) + "</div></details>\n";
}

std::string lines_section(const Report& report) {
  std::string out =
      "<section id=\"laws\"><h2>The five lines of learning mechanics</h2>\n<div class=\"lines\">\n";
  for (const Line line : {Line::kSolvableSettings, Line::kSimplifyingLimits, Line::kEmpiricalLaws,
                          Line::kHyperparameters, Line::kUniversalPhenomena}) {
    std::string blocks;
    for (const LawDescription& law : report.laws) {
      if (law.line == line) blocks += law_block(report, law);
    }
    std::string name = to_string(line);
    if (!name.empty())
      name[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(name[0])));
    out += fmt::format("<div class=\"line\"><h3>{}</h3><div>{}</div></div>\n", escape(name),
                       blocks.empty()
                           ? "<p class=\"muted\">No law of this line is implemented yet.</p>\n"
                           : blocks);
  }
  return out + "</div></section>\n";
}

const char* const kOverview = R"html(<section class="noempty" id="overview"><h2>At a glance</h2>
<p class="muted">Each line is a layer or a parameter, dark for the first and light for the last of the model; in lists, the first position is dark. Click a chart to enlarge it.</p>
<div class="multiples" id="multiples"></div></section>
)html";

std::string incident_table(const Report& report, const IncidentWords& words) {
  std::string out =
      "<div class=\"scroll\"><table><thead><tr><th>Step</th><th>What was outside its "
      "range</th><th>Usual value</th><th>Seen</th><th>Spreads "
      "away</th><th>Before</th></tr></thead><tbody>\n";
  for (const IncidentRow& row : words.rows) {
    out += fmt::format(
        "<tr><td class=\"number\">{}</td><td class=\"name\">{}{}{}</td><td "
        "class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td "
        "class=\"number\">{}</td></tr>\n",
        row.step, escape(row.what), chart_link(report, row.statistic, row.scope),
        row.note.empty() ? "" : "<br><span class=\"muted\">" + escape(row.note) + "</span>",
        escape(row.usual), escape(row.seen), escape(row.spreads), escape(row.within));
  }
  out += "</tbody></table></div>\n";
  if (words.left_out > 0)
    out += fmt::format("<p class=\"muted\">and {} more, later.</p>\n", words.left_out);
  return out;
}

std::string incidents_section(const Report& report) {
  const std::string missing = no_incident(report);
  if (report.incidents.empty() && missing.empty()) return "";
  std::string out = "<section id=\"wrong\"><h2>What went wrong</h2>\n";
  if (!missing.empty()) out += "<p>" + escape(missing) + "</p>\n";
  for (const Incident& each : report.incidents) {
    const IncidentWords words = describe(report, each);
    out += "<h3>" + escape(words.title) + "</h3>\n";
    for (const std::string& sentence : words.sentences) out += "<p>" + escape(sentence) + "</p>\n";
    if (!words.rows.empty()) out += incident_table(report, words);
  }
  return out + "</section>\n";
}

// The charts are drawn from the data of the page.
std::string curvature_section(const Report& report) {
  const Curvature seen = curvature(report);
  if (!seen.any() && report.spectrum.node.empty()) return "";
  std::string out = "<section id=\"curvature\"><h2>Curvature</h2>\n";
  if (!seen.headroom.empty()) out += "<p>" + escape(seen.headroom) + "</p>\n";
  if (const std::vector<std::string> lines = curvature_lines(seen); !lines.empty())
    out += "<p class=\"muted\">Latest measurement:</p>\n" + bullets(lines);
  return out + "<div class=\"multiples wide\" id=\"curves\"></div></section>\n";
}

const char* const kLayers = R"html(<section id="layers"><h2>Layers</h2>
<p class="muted">Latest values: the mean over the last stretch of steps. Click a heading to sort, a layer to see its series.</p>
<div class="controls"><label>Find <input id="layer-find" type="search" autocomplete="off"></label></div>
<div class="scroll" id="layer-table"></div></section>
)html";

const char* const kViews = R"html(<section id="views"><h2>Layer by layer</h2>
<div class="controls"><label>Statistic <select id="statistic"></select></label>
<label>Rows <select id="grouping"><option value="none">one by one</option><option value="kind">by kind of layer</option><option value="block">by block</option></select></label>
<label>Scale <select id="scale"><option value="auto">automatic</option><option value="linear">linear</option><option value="log">logarithmic</option></select></label>
<span class="muted">Select a row to see its series. Drag across the chart to zoom, double-click to see everything; by keyboard, + and -, arrows, and 0.</span></div>
<p class="muted" id="left-out"></p>
<div class="heatwrap"><div class="rows" id="rows"></div><div><canvas class="heat" id="heat" aria-hidden="true"></canvas>
<div class="axis"><span id="from"></span><span id="to"></span></div>
<div class="legend"><span id="low"></span><canvas id="ramp" width="160" height="12"></canvas><span id="high"></span>
<span>a value stands until the next measurement; empty: not measured; a group shows the median of its layers</span><span class="broken"></span><span>not finite</span></div></div></div>
<h3 id="title"></h3><p class="muted" id="definition"></p><div class="chart" id="chart"></div>
<details><summary>as a table</summary><div class="tablebox"><table><thead><tr><th>step</th><th>mean</th><th>95 % interval</th><th>least</th>
<th>largest</th><th>not finite</th></tr></thead><tbody id="values"></tbody></table></div></details></section>
)html";

}  // namespace

std::string html_report(const Report& report) {
  const std::string name = report.run.run_name().empty() ? report.path : report.run.run_name();
  uint64_t elements = 0;
  for (const auto& parameter : report.model.parameter()) elements += parameter.element_count();
  const std::string curved = curvature_section(report);
  const std::string wrong = incidents_section(report);
  std::vector<std::pair<std::string, std::string>> sections = {{"short", "In short"}};
  if (!wrong.empty()) sections.emplace_back("wrong", "What went wrong");
  sections.insert(sections.end(), {{"to-do", "What to do"}, {"overview", "At a glance"}});
  if (!curved.empty()) sections.emplace_back("curvature", "Curvature");
  sections.insert(sections.end(), {{"laws", "Laws"},
                                   {"layers", "Layers"},
                                   {"views", "Layer by layer"},
                                   {"run", "The run"},
                                   {"lost", "What was lost"},
                                   {"cost", "What Tycho cost"}});
  std::string out =
      page_head(name + " - mechanics report", without_source_map(assets::dygraph_css));
  out += fmt::format(
      "<header><p class=\"kind\">Mechanics report</p><h1>{}</h1><p>{}; {} layers with {} "
      "weights{}</p>{}{}</header>\n",
      escape(name),
      report.frames == 0 ? std::string("no step was observed")
                         : fmt::format("steps {} to {}, {} of them observed", report.first_step,
                                       report.last_step, report.frames),
      report.model.layer_size(), elements,
      report.run.optimizer().empty() ? "" : ", trained by " + escape(report.run.optimizer()),
      tally(report.laws, [&](const LawDescription& law) { return summary_verdict(report, law); }),
      contents(sections));
  out += "<section id=\"short\"><h2>In short</h2>" + bullets(in_short(report)) + "</section>\n";
  out += wrong;
  out += what_to_do_section(report);
  out += kOverview;
  out += curved;
  out += lines_section(report);
  out += kLayers;
  out += kViews;
  out += identity_section(report);
  out += lost_section(report);
  out += happenings_section(report);
  out += cost_section(report);
  out +=
      "<details class=\"noprint\"><summary>licence of the chart library (dygraphs)</summary><pre>" +
      escape(assets::dygraph_license) + "</pre></details>\n";
  return out + page_end(view_data(report), without_source_map(assets::dygraph_js),
                        std::string(assets::series_js) + assets::heat_js + assets::layers_js +
                            assets::page_js);
}

}  // namespace tycho::analyzer
