#include "html_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

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
