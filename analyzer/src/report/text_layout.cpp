#include "text_layout.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/printable.h"

namespace tycho::analyzer {

const char* mark(Verdict verdict) {
  switch (verdict) {
    case Verdict::kHolds:
      return "+";
    case Verdict::kViolated:
      return "!";
    case Verdict::kNotApplicable:
      return "-";
    case Verdict::kUnderpowered:
      return "?";
    case Verdict::kNotYet:
      return ".";
    case Verdict::kNotMeasured:
      return "o";
  }
  return " ";
}

std::string paint(const std::string& text, Verdict verdict, bool colour) {
  if (!colour) return text;
  const char* code = verdict == Verdict::kHolds      ? "32"
                     : verdict == Verdict::kViolated ? "1;31"
                                                     : "2";
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

std::string clean(const std::string& text) { return printable(text); }

std::string wrap(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  size_t at = 0;
  // Lines are broken anew.
  std::string cleaned = printable(text, "\n");
  std::replace(cleaned.begin(), cleaned.end(), '\n', ' ');
  while (at < cleaned.size()) {
    const size_t end = std::min(cleaned.find(' ', at), cleaned.size());
    const std::string word = cleaned.substr(at, end - at);
    if (column > indent && column + 1 + word.size() > width) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    at = end + 1;
  }
  return out;
}

}  // namespace tycho::analyzer
