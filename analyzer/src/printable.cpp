#include "src/printable.h"

#include <fmt/format.h>

#include <cstdint>
#include <iterator>

namespace tycho::analyzer {
namespace {

struct Character {
  uint32_t code = 0;
  size_t bytes = 0;  ///< 0: no UTF-8
};

// As RFC 3629 has it: shortest form, no surrogates, at most U+10FFFF.
Character decode(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const uint32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  const size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < bytes) return {};
  uint32_t code = first & (0x7Fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3F);
  }
  const uint32_t least = bytes == 4 ? 0x10000 : bytes == 3 ? 0x800 : 0x80;
  if (code < least || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return {};
  return {code, bytes};
}

bool is_obeyed(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code <= 0x9F) ||  // controls
         code == 0x61C || code == 0x200E || code == 0x200F || code == 0x2028 || code == 0x2029 ||
         (code >= 0x202A && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
}

}  // namespace

std::string printable(std::string_view text, std::string_view keep) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Character next = decode(text);
    const size_t bytes = next.bytes == 0 ? 1 : next.bytes;
    const bool escaped =
        next.bytes == 0 || (is_obeyed(next.code) && keep.find(text[0]) == std::string_view::npos);
    for (size_t i = 0; i < bytes; ++i) {
      if (escaped) {
        fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<uint8_t>(text[i]));
      } else {
        out += text[i];
      }
    }
    text.remove_prefix(bytes);
  }
  return out;
}

}  // namespace tycho::analyzer
