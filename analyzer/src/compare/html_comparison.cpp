#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "src/compare/comparison.h"
#include "src/compare/overlay_data.h"
#include "src/compare/picture.h"
#include "src/page/html_parts.h"
#include "src/report/layer_names.h"
#include "src/report/report.h"

namespace tycho::analyzer {

namespace assets {
extern const char* const compare_css;
extern const char* const compare_js;
}  // namespace assets

namespace {

std::string title_of(const Comparison& comparison, const Finding& finding) {
  const LawDescription* law = comparison.law(finding.law);
  return law != nullptr ? law->title : finding.law;
}

/// A layer with its type; its extents differ from run to run.
std::string scope_name(const Comparison& comparison, const std::string& scope) {
  const std::string prefix = "layer:";
  if (scope.rfind(prefix, 0) != 0) return scope;
  const std::string path = scope.substr(prefix.size());
  std::string name = path.empty() ? "(root)" : path;
  for (const v1::Layer& layer : comparison.set.runs()[0].model.layer()) {
    if (layer.path() != path || layer_type(layer).empty()) continue;
    return name + " (" + layer_type(layer) + ")";
  }
  return name;
}

std::string what_to_do_section(const Comparison& comparison) {
  std::string out = "<section id=\"to-do\"><h2>What to do</h2>\n";
  const auto important = what_to_do(comparison);
  if (important.empty()) {
    return out + "<p>" + escape(nothing_to_do(comparison)) + "</p></section>\n";
  }
  out += "<div class=\"cards\">\n";
  for (const ComparisonFinding* finding : important) {
    out += fmt::format(
        "<article class=\"card {}\"><h3>{}</h3><p>{}</p><p class=\"evidence\">{} {}</p><p "
        "class=\"evidence\">{}</p></article>\n",
        to_string(finding->verdict), escape(title_of(comparison, *finding)),
        escape(finding->advice), badge(finding->verdict), escape(evidence(*finding)),
        escape(where(comparison, *finding)));
  }
  return out + "</div></section>\n";
}

/// What was fitted over an axis: the name of the axis comes from the law.
std::string fit_picture(const ComparisonFinding& finding) {
  if (finding.law == "critical_batch") {
    const std::string picture =
        log_log_picture(finding.points, finding.curve, "steps to the target", "examples to it");
    return picture.empty() ? ""
                           : "<figure>" + picture +
                                 "<figcaption>Every run, and the fitted "
                                 "hyperbola</figcaption></figure>\n";
  }
  if (finding.points.size() < 2 || !std::isfinite(finding.measured)) return "";
  // The fitted line, through the middle of the points.
  double x = 0;
  double y = 0;
  double count = 0;
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (const auto& [a, b] : finding.points) {
    if (!(a > 0) || !(b > 0)) continue;
    x += std::log(a);
    y += std::log(b);
    ++count;
    low = std::min(low, a);
    high = std::max(high, a);
  }
  if (count < 2) return "";
  Points line;
  for (const double at : {low, high}) {
    line.emplace_back(at, std::exp(y / count + finding.measured * (std::log(at) - x / count)));
  }
  std::string name = finding.evidence_statistic;
  std::replace(name.begin(), name.end(), '_', ' ');
  const std::string picture = log_log_picture(
      finding.points, line, finding.law == "depth_scaling" ? "depth" : "width", name);
  return picture.empty() ? ""
                         : fmt::format(
                               "<figure>{}<figcaption>{}: every run, and the fitted power {}"
                               "</figcaption></figure>\n",
                               picture, escape(name), short_number(finding.measured));
}

std::string exponents_of(const Comparison& comparison, const std::string& law,
                         const std::string& sweep) {
  std::vector<const ComparisonFinding*> findings;
  for (const ComparisonFinding& finding : comparison.findings) {
    if (finding.law == law && finding.sweep == sweep && finding.scope != "runs" &&
        finding.unit == "exponent") {
      findings.push_back(&finding);
    }
  }
  // By statistic, in the order of the law, then as the model orders its layers.
  const LawDescription* description = comparison.law(law);
  std::map<std::string, size_t> order;
  if (description != nullptr) {
    for (const std::string& statistic : description->statistics) {
      order.emplace(statistic, order.size());
    }
  }
  std::map<std::string, int> place;
  if (!comparison.set.runs().empty()) {
    for (const v1::Layer& layer : comparison.set.runs()[0].model.layer())
      place.emplace("layer:" + layer.path(), static_cast<int>(layer.id()));
  }
  std::stable_sort(findings.begin(), findings.end(),
                   [&](const ComparisonFinding* a, const ComparisonFinding* b) {
                     const size_t left = order[a->evidence_statistic];
                     const size_t right = order[b->evidence_statistic];
                     return left != right ? left < right : place[a->scope] < place[b->scope];
                   });
  constexpr size_t kMostRows = 200;
  std::vector<ExponentRow> rows;
  for (const ComparisonFinding* finding : findings) {
    if (rows.size() == kMostRows) break;
    ExponentRow row;
    row.name = scope_name(comparison, finding->scope);
    row.group = finding->evidence_statistic;
    std::replace(row.group.begin(), row.group.end(), '_', ' ');
    row.verdict = finding->verdict;
    row.value = finding->measured;
    row.low = finding->ci_low;
    row.high = finding->ci_high;
    for (const auto& at : finding->by_step) row.by_step.emplace_back(at.step, at.slope.value);
    rows.push_back(std::move(row));
  }
  const std::string picture = exponent_picture(rows, kExponentTolerance, kExcludedExponent);
  if (picture.empty()) return "";
  return "<figure>" + picture +
         "<figcaption>Exponents by layer with 95 % intervals; predicted 0, the band is the "
         "tolerance. A disc holds, a cross is violated, a ring is not decided, a dash is not "
         "judged.</figcaption></figure>\n";
}

std::string law_block(const Comparison& comparison, const LawDescription& law) {
  std::vector<const ComparisonFinding*> whole;
  std::string rows;
  size_t count = 0;
  const size_t most = rows_per_law(comparison.laws.size());
  std::map<Verdict, int> counts;
  for (const ComparisonFinding& finding : comparison.findings) {
    if (finding.law != law.id) continue;
    ++counts[finding.verdict];
    if (finding.scope == "runs") whole.push_back(&finding);
    if (++count > most) continue;
    rows += fmt::format(
        "<tr><td class=\"name\">{}{}</td><td>{}</td><td class=\"number\">{}</td><td "
        "class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td></tr>\n",
        escape(scope_name(comparison, finding.scope)),
        finding.evidence_statistic.empty() ? "" : "<br>" + escape(finding.evidence_statistic),
        badge(finding.verdict), optional_number(finding.measured), interval(finding),
        optional_number(finding.predicted),
        escape(finding.advice.empty() ? finding.gate : finding.advice));
  }
  const Verdict verdict = summary_verdict(comparison, law);
  std::string says;
  for (const ComparisonFinding* finding : whole) {
    if (finding->verdict != verdict) continue;
    const bool speaks = verdict == Verdict::kHolds || verdict == Verdict::kViolated;
    says = speaks ? evidence(*finding) : finding->gate;
    break;
  }
  std::string out = law_head(law, verdict, verdict != Verdict::kNotApplicable, says);
  std::set<std::string> drawn;
  for (const ComparisonFinding* finding : whole) {
    if (finding->verdict == Verdict::kNotApplicable || !drawn.insert(finding->sweep).second)
      continue;
    out += fmt::format("<h4>{} {}</h4><p>{}</p><div class=\"pictures\">{}{}</div>\n",
                       escape(finding->sweep.empty() ? "all runs" : finding->sweep),
                       badge(finding->verdict), escape(finding->gate),
                       exponents_of(comparison, law.id, finding->sweep), fit_picture(*finding));
  }
  out += "<details><summary>all findings</summary>";
  for (const auto& [of, times] : counts) out += badge(of, times) + " ";
  out += kFindingHead + rows + "</tbody></table>\n";
  if (count > most) {
    out += fmt::format("<p class=\"muted\">and {} more, in the JSON.</p>\n", count - most);
  }
  out += "</details>\n";
  return out + law_footer(law) + "</div></details>\n";
}

std::string laws_section(const Comparison& comparison) {
  std::string out = "<section id=\"laws\"><h2>Laws over these runs</h2>\n";
  std::vector<const LawDescription*> order;
  for (const LawDescription& law : comparison.laws) order.push_back(&law);
  const auto silent = [&](const LawDescription* law) {
    return summary_verdict(comparison, *law) == Verdict::kNotApplicable;
  };
  std::stable_sort(
      order.begin(), order.end(),
      [&](const LawDescription* a, const LawDescription* b) { return !silent(a) && silent(b); });
  for (const LawDescription* law : order) out += law_block(comparison, *law);
  return out + "</section>\n";
}

std::string position_text(double value, Alignment by) {
  if (std::isnan(value)) return "";
  return by == Alignment::kTime ? fmt::format("{:.3g} s", value) : fmt::format("{:.0f}", value);
}

std::string differences_section(const Comparison& comparison) {
  const RunSet& set = comparison.set;
  const Outcomes ends = outcomes(comparison);
  const Alignment by = comparison.options.by;
  std::string out = "<section id=\"differences\"><h2>What differs</h2>\n";
  const auto found = sweeps(set);
  if (!found.empty()) {
    out += "<p>Sweeps: ";
    for (size_t i = 0; i < found.size(); ++i)
      out += (i > 0 ? "; " : "") + escape(found[i].describe());
    out += ".</p>\n";
  }
  std::vector<const Difference*> columns;
  std::vector<const Difference*> others;
  constexpr size_t kMostColumns = 10;
  for (const Difference& difference : set.differences()) {
    const bool column = difference.kind != SettingKind::kShape &&
                        difference.kind != SettingKind::kInstrument &&
                        columns.size() < kMostColumns;
    (column ? columns : others).push_back(&difference);
  }
  out += "<div class=\"scroll\"><table class=\"runs\"><thead><tr><th>run</th>";
  for (const Difference* column : columns) out += "<th>" + escape(column->name) + "</th>";
  out += fmt::format("<th>{}</th><th>{}</th><th>{} at {}</th></tr></thead><tbody>\n",
                     by == Alignment::kStep ? "last step" : to_string(by), escape(ends.statistic),
                     escape(ends.statistic), position_text(ends.common_end, by));
  for (size_t r = 0; r < set.runs().size(); ++r) {
    out += fmt::format("<tr><td title=\"{}\">{}</td>", escape(set.runs()[r].path),
                       escape(set.runs()[r].name));
    for (const Difference* column : columns)
      out += "<td class=\"number\">" + escape(column->value[r]) + "</td>";
    out += fmt::format(
        "<td class=\"number\">{}</td><td class=\"number\">{}</td><td "
        "class=\"number\">{}</td></tr>\n",
        position_text(ends.run[r].end, by), optional_number(ends.run[r].loss),
        optional_number(ends.run[r].common_loss));
  }
  out += "</tbody></table></div>\n";
  if (!others.empty()) {
    out += fmt::format(
        "<details><summary>{} more differences: extents of parameters, versions, environment, "
        "options of the instrument</summary><table><tbody>\n",
        others.size());
    for (const Difference* other : others) {
      std::vector<std::string> values;
      for (const std::string& value : other->value) {
        if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
      }
      constexpr size_t kMostValues = 16;
      const bool more = values.size() > kMostValues;
      values.resize(std::min(values.size(), kMostValues));
      out += fmt::format("<tr><td class=\"name\">{}</td><td>{}{}</td></tr>\n", escape(other->name),
                         escape(fmt::format("{}", fmt::join(values, ", "))), more ? ", ..." : "");
    }
    out += "</tbody></table></details>\n";
  }
  return out + "</section>\n";
}

std::string left_out_section(const Comparison& comparison) {
  const RunSet& set = comparison.set;
  std::string out = "<section id=\"left-out\"><h2>What was left out</h2>\n";
  if (set.left_out().empty() && set.notes().empty()) out += "<p>Nothing.</p>\n";
  if (!set.left_out().empty()) {
    out += "<table><thead><tr><th>run</th><th>why</th></tr></thead><tbody>\n";
    for (const LeftOut& left : set.left_out()) {
      out += fmt::format("<tr><td class=\"name\">{}</td><td>{}</td></tr>\n", escape(left.path),
                         escape(left.why));
    }
    out += "</tbody></table>\n";
  }
  if (!set.notes().empty()) out += bullets(set.notes());
  return out + "</section>\n";
}

const char* const kOverview = R"html(<section class="noempty" id="overview"><h2>At a glance</h2>
<p class="muted">Each line is a run; runs that differ by their seeds share colour, pattern and mark. Click a chart to look closer.</p>
<div class="multiples" id="multiples"></div></section>
)html";

const char* const kViews = R"html(<section id="views"><h2>Runs overlaid</h2>
<div class="controls"><label>Statistic <select id="statistic"></select></label>
<label>Layer <select id="layer"></select></label>
<label>Over <select id="along"><option value="step">steps</option><option value="examples">examples seen</option><option value="time">time</option></select></label>
<label>Axis <select id="xscale"><option value="log">logarithmic</option><option value="linear">linear</option></select></label>
<label>Values <select id="yscale"><option value="auto">automatic</option><option value="linear">linear</option><option value="log">logarithmic</option></select></label></div>
<h3 id="title"></h3><p class="muted" id="definition"></p><svg class="overlay" id="chart"></svg></section>
)html";

}  // namespace

std::string html_comparison(const Comparison& comparison) {
  const RunSet& set = comparison.set;
  std::string title = fmt::format("{} runs", set.runs().size());
  std::vector<std::string> axes;
  for (const Ladder& ladder : sweeps(set)) {
    const std::string axis = to_string(ladder.axis);
    if (std::find(axes.begin(), axes.end(), axis) == axes.end()) axes.push_back(axis);
  }
  if (!axes.empty()) title += " over " + enumerate(axes);
  const OverlayData page = overlay_data(comparison);
  std::string out = page_head(title + " - comparison", assets::compare_css);
  out += fmt::format(
      "<header><p class=\"kind\">Comparison</p><h1>{}</h1><p>{}; overlaid by "
      "{}{}</p>{}{}</header>\n",
      escape(title),
      set.groups() == 1 ? std::string("they differ at most in their seeds")
                        : fmt::format("{} groups that differ in more than seeds", set.groups()),
      to_string(comparison.options.by),
      set.left_out().empty() ? "" : fmt::format("; {} left out", set.left_out().size()),
      tally(comparison.laws,
            [&](const LawDescription& law) { return summary_verdict(comparison, law); }),
      contents({{"to-do", "What to do"},
                {"laws", "Laws"},
                {"differences", "What differs"},
                {"overview", "At a glance"},
                {"views", "Runs overlaid"},
                {"left-out", "What was left out"}}));
  out += what_to_do_section(comparison);
  out += laws_section(comparison);
  out += differences_section(comparison);
  out += kOverview;
  out += kViews;
  if (!page.left_out.empty()) {
    out += "<p class=\"muted\">For lack of space this page leaves out the curves of " +
           escape(enumerate(page.left_out)) + ".</p>\n";
  }
  out += left_out_section(comparison);
  return out + page_end(page.data, "", assets::compare_js);
}

}  // namespace tycho::analyzer
