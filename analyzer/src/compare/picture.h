#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

// Pictures of a page as SVG, drawn without a script so that they print; colours are those of the
// page, and what they say can be read without them.

using Points = std::vector<std::pair<double, double>>;

/// Points and a line on two logarithmic axes; what is not positive is left out. Empty where fewer
/// than two points are left.
std::string log_log_picture(const Points& points, const Points& line, const std::string& x_label,
                            const std::string& y_label);

/// An exponent that is predicted to be 0, in one row of a picture.
struct ExponentRow {
  std::string name;
  std::string group;  ///< a heading above the first row of a group
  Verdict verdict = Verdict::kNotYet;
  double value = kUnknown;
  double low = kUnknown;
  double high = kUnknown;
  Points by_step;  ///< exponent against step
};

/// Rows of exponents with their intervals against the tolerance, beside how each went with the
/// steps. The sign of a row's verdict: a disc holds, a cross is violated, a ring is not known.
std::string exponent_picture(const std::vector<ExponentRow>& rows, double tolerance,
                             double excluded);

}  // namespace tycho::analyzer
