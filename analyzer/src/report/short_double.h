#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace tycho::analyzer {

/// A double in half its size: the sign, the exponent and 20 bits of the mantissa, rounded to
/// nearest. Six significant digits over the whole range of doubles, but for subnormal numbers,
/// which lose more. A finite number stays finite.
class ShortDouble {
 public:
  ShortDouble() = default;
  explicit ShortDouble(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint64_t rounded = bits + (uint64_t{1} << 31);
    constexpr uint64_t kInfinity = uint64_t{0x7ff} << 52;
    // The largest doubles would round to infinity, and a NaN to something else.
    const bool keep = !std::isfinite(value) || (rounded & kInfinity) == kInfinity;
    bits_ = static_cast<uint32_t>((keep ? bits : rounded) >> 32);
    if (std::isnan(value)) bits_ = 0x7ff80000;
  }
  double value() const {
    const uint64_t bits = uint64_t{bits_} << 32;
    double result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
  }

 private:
  uint32_t bits_ = 0;
};

}  // namespace tycho::analyzer
