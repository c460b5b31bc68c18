#include "text_columns.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <utility>

namespace tycho::analyzer {
namespace {

struct Range {
  uint32_t first;
  uint32_t last;
};

// Unicode 15, blocks whose characters are wide (East Asian Width W or F), coarsely.
constexpr std::array<Range, 9> kWide = {{{0x1100, 0x115F},
                                         {0x2E80, 0x303E},
                                         {0x3041, 0xA4CF},
                                         {0xAC00, 0xD7A3},
                                         {0xF900, 0xFAFF},
                                         {0xFE30, 0xFE6F},
                                         {0xFF00, 0xFF60},
                                         {0x1F300, 0x1FAFF},
                                         {0x20000, 0x3FFFD}}};
constexpr std::array<Range, 5> kCombining = {
    {{0x0300, 0x036F}, {0x1AB0, 0x1AFF}, {0x200B, 0x200F}, {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}}};

template <size_t N>
bool is_in(const std::array<Range, N>& ranges, uint32_t code) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const Range& range) { return code >= range.first && code <= range.last; });
}

// Bytes and columns of the first character. The text is UTF-8 (printable()); what is not counts as
// one column a byte.
std::pair<size_t, size_t> first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const size_t bytes = byte(0) < 0x80 ? 1 : byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  if (bytes == 1 || byte(0) < 0xC2 || text.size() < bytes) return {1, 1};
  uint32_t code = byte(0) & (0x7Fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {1, 1};
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  return {bytes, is_in(kWide, code) ? 2 : is_in(kCombining, code) ? 0 : 1};
}

// Bytes that take at most `most` columns, and the columns they take.
std::pair<size_t, size_t> head(std::string_view text, size_t most) {
  size_t bytes = 0;
  size_t taken = 0;
  while (bytes < text.size()) {
    const auto [next, width] = first_character(text.substr(bytes));
    if (taken + width > most) break;
    bytes += next;
    taken += width;
  }
  return {bytes, taken};
}

}  // namespace

size_t columns(std::string_view text) { return head(text, text.size() * 2).second; }

std::string cut(std::string_view text, size_t most) {
  if (columns(text) <= most) return std::string(text);
  constexpr size_t kMark = 3;
  if (most < 2 * kMark) return std::string(text.substr(0, head(text, most).first));
  return std::string(text.substr(0, head(text, most - kMark).first)) + "...";
}

std::string fit(std::string_view text, size_t width) {
  std::string out = cut(text, width);
  const size_t taken = columns(out);
  return out + std::string(width > taken ? width - taken : 0, ' ');
}

std::string sparkline(const std::vector<double>& series, size_t width, bool unicode) {
  static constexpr std::array<const char*, 8> kBlocks = {"\u2581", "\u2582", "\u2583", "\u2584",
                                                         "\u2585", "\u2586", "\u2587", "\u2588"};
  static constexpr std::array<const char*, 8> kAscii = {"_", ".", ":", "-", "=", "+", "*", "#"};
  if (width == 0) return "";
  std::vector<double> values;
  std::copy_if(series.begin(), series.end(), std::back_inserter(values),
               [](double value) { return std::isfinite(value); });
  // As many stretches as columns at most: the mean of those that share one.
  std::vector<double> shown;
  const size_t count = std::min(width, values.size());
  for (size_t i = 0; i < count; ++i) {
    const size_t begin = i * values.size() / count;
    const size_t end = (i + 1) * values.size() / count;
    double sum = 0;
    for (size_t k = begin; k < end; ++k) sum += values[k];
    shown.push_back(sum / static_cast<double>(end - begin));
  }
  double low = __builtin_inf();
  double high = -__builtin_inf();
  for (const double value : shown) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const bool logarithmic = low > 0 && high / low > 10;
  const auto scale = [&](double value) { return logarithmic ? std::log(value) : value; };
  const double range = scale(high) - scale(low);
  std::string out;
  for (const double value : shown) {
    const double height = range > 0 ? (scale(value) - scale(low)) / range : 0.5;
    const auto level = static_cast<size_t>(std::clamp(height * 8, 0.0, 7.0));
    out += unicode ? kBlocks[level] : kAscii[level];
  }
  return std::string(width - count, ' ') + out;
}

}  // namespace tycho::analyzer
