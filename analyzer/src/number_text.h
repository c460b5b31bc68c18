#pragma once

#include <string>

namespace tycho::analyzer {

/// A number for people, everywhere the same: so many significant digits, without zeros at the end,
/// plain from 0.001 to below a million ("19000", "0.0123"), else with an exponent ("1.9e7",
/// "4.02e-5"). "inf", "-inf" and "nan" as they are. Independent of the locale.
std::string number_text(double value, int digits);

}  // namespace tycho::analyzer
