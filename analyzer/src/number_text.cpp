#include "src/number_text.h"

#include <fmt/format.h>

#include <cmath>

namespace tycho::analyzer {

std::string number_text(double value, int digits) {
  if (!std::isfinite(value) || value == 0) return fmt::format("{:g}", value == 0 ? 0.0 : value);
  // The exponent after rounding: 999.96 has four digits before the point in four digits.
  std::string text = fmt::format("{:.{}e}", value, digits - 1);
  const size_t at = text.find('e');
  const int exponent = std::stoi(text.substr(at + 1));
  const auto without_zeros = [](std::string number) {
    if (number.find('.') == std::string::npos) return number;
    number.resize(number.find_last_not_of('0') + 1);
    if (number.back() == '.') number.pop_back();
    return number;
  };
  if (exponent < -3 || exponent >= 6)
    return without_zeros(text.substr(0, at)) + "e" + std::to_string(exponent);
  if (exponent >= digits) {
    // Digits that were rounded away are zeros.
    const std::string mantissa = text.substr(0, at);
    std::string number;
    for (const char c : mantissa) {
      if (c != '.') number += c;
    }
    return number + std::string(static_cast<size_t>(exponent - digits + 1), '0');
  }
  return without_zeros(fmt::format("{:.{}f}", value, digits - 1 - exponent));
}

}  // namespace tycho::analyzer
