#include "text_layout.h"

#include <fmt/format.h>

#include <algorithm>

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

std::string clean(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

std::string wrap(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  size_t at = 0;
  const std::string cleaned = clean(text);
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
