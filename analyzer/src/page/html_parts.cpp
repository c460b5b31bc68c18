#include "src/page/html_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "src/page/packed_text.h"
#include "src/report/report.h"

namespace tycho::analyzer {

using nlohmann::json;

namespace {

const char* symbol(Verdict verdict) {
  switch (verdict) {
    case Verdict::kHolds:
      return "&#10003;";
    case Verdict::kViolated:
      return "&#10007;";
    case Verdict::kNotApplicable:
      return "&ndash;";
    case Verdict::kUnderpowered:
      return "?";
    case Verdict::kNotYet:
      return "&hellip;";
    case Verdict::kNotMeasured:
      return "&#8709;";
  }
  return "";
}

}  // namespace

const char* const kFindingHead =
    "<table><thead><tr><th>where</th><th>verdict</th><th>measured</th><th>95 % "
    "interval</th><th>predicted</th>"
    "<th>what it means</th></tr></thead><tbody>\n";

std::string page_head(const std::string& title, const std::string& style) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
      "<title>{}</title>\n<style>{}\n{}</style></head><body><main>\n",
      escape(title), assets::page_css, style);
}

std::string page_end(const json& data, const std::string& libraries, const std::string& scripts) {
  return "</main>\n" + data_element(data) +
         (libraries.empty() ? "" : "<script>" + libraries + "</script>\n") + "<script>" +
         assets::kit_js + scripts + "</script>\n</body></html>\n";
}

std::string contents(const std::vector<std::pair<std::string, std::string>>& sections) {
  std::string out = "<nav class=\"contents\" aria-label=\"Contents\">";
  for (const auto& [id, title] : sections)
    out += fmt::format("<a href=\"#{}\">{}</a> ", id, escape(title));
  return out + "</nav>";
}

std::string bullets(const std::vector<std::string>& items) {
  std::string out = "<ul>\n";
  for (const std::string& item : items) out += "<li>" + escape(item) + "</li>\n";
  return out + "</ul>\n";
}

std::string tally(const std::vector<LawDescription>& laws,
                  const std::function<Verdict(const LawDescription&)>& verdict_of) {
  std::map<Verdict, int> counts;
  for (const LawDescription& law : laws) ++counts[verdict_of(law)];
  std::string out = "<p class=\"tally\">";
  for (const Verdict verdict : {Verdict::kViolated, Verdict::kHolds, Verdict::kUnderpowered,
                                Verdict::kNotYet, Verdict::kNotMeasured, Verdict::kNotApplicable}) {
    if (counts[verdict] > 0) out += badge(verdict) + fmt::format(" <b>{}</b> ", counts[verdict]);
  }
  return out + "</p>\n";
}

std::string optional_number(double value) { return std::isnan(value) ? "" : short_number(value); }

std::string interval(const Finding& finding) {
  if (std::isnan(finding.ci_low) || std::isnan(finding.ci_high)) return "";
  return fmt::format("[{}, {}]", short_number(finding.ci_low), short_number(finding.ci_high));
}

size_t rows_per_law(size_t laws) {
  constexpr size_t kMostRows = 2000;  // about a third of a kilobyte each
  return std::clamp<size_t>(laws == 0 ? kMostRows : kMostRows / laws, 24, 400);
}

std::string law_head(const LawDescription& law, Verdict verdict, bool open,
                     const std::string& says) {
  return fmt::format(
      "<details class=\"law\" id=\"law-{}\"{}><summary><span class=\"lawtitle\">{}</span> {}<span "
      "class=\"says\">{}</span></summary>\n<div class=\"lawbody\"><p class=\"formula\">{}</p>\n",
      escape(law.id), open ? " open" : "", escape(law.title), badge(verdict), escape(says),
      escape(law.formula));
}

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string script_json(const json& value) {
  std::string out;
  for (const char c : value.dump(-1, ' ', false, json::error_handler_t::replace)) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

std::string data_element(const json& data) {
  constexpr size_t kLong = 100000;
  std::string text = script_json(data);
  if (text.size() < kLong)
    return "<script type=\"application/json\" id=\"data\">" + text + "</script>\n";
  return "<script type=\"application/x-deflate\" id=\"data\">" + base64(deflated(text)) +
         "</script>\n";
}

std::string badge(Verdict verdict, int count) {
  return fmt::format("<span class=\"verdict {0}\">{1} {0}{2}</span>", to_string(verdict),
                     symbol(verdict), count > 1 ? fmt::format(" &times;{}", count) : "");
}

json rounded(double value) {
  if (!std::isfinite(value)) return nullptr;
  const json shorter = json::parse(fmt::format("{:.5g}", value), nullptr, false);
  return shorter.is_discarded() ? json(value) : shorter;  // the largest doubles round to infinity
}

std::string law_footer(const LawDescription& law) {
  std::string out = fmt::format("<p><b>Assumes</b> {}</p><p><b>What to do</b> {}</p>",
                                escape(law.assumptions), escape(law.what_to_do));
  if (!law.caveats.empty()) {
    out += "<ul>";
    for (const std::string& caveat : law.caveats) out += "<li>" + escape(caveat) + "</li>";
    out += "</ul>";
  }
  return out + fmt::format("<p class=\"muted\">{}</p>", escape(law.source));
}

std::string without_source_map(const std::string& text) {
  size_t at = text.find("sourceMappingURL=");
  if (at == std::string::npos) return text;
  at = std::min(text.rfind("//#", at), text.rfind("/*#", at));
  return text.substr(0, at);
}

}  // namespace tycho::analyzer
