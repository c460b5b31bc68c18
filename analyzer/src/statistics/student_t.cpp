#include "src/statistics/student_t.h"

#include <array>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>

namespace tycho::analyzer {

double student_t_quantile(double confidence, double degrees_of_freedom) {
  if (!(degrees_of_freedom > 0)) return std::numeric_limits<double>::infinity();
  const boost::math::students_t distribution(degrees_of_freedom);
  return boost::math::quantile(boost::math::complement(distribution, (1 - confidence) / 2));
}

double student_t_tail(double t, double degrees_of_freedom) {
  if (!(degrees_of_freedom > 0) || std::isnan(t)) return std::numeric_limits<double>::quiet_NaN();
  if (std::isinf(t)) return t > 0 ? 0 : 1;
  const boost::math::students_t distribution(degrees_of_freedom);
  return boost::math::cdf(boost::math::complement(distribution, t));
}

double fast_student_t_tail(double t, double degrees_of_freedom) {
  const double nu = degrees_of_freedom;
  const double normal =
      (8 * nu + 1) / (8 * nu + 3) * std::sqrt(nu * std::log1p(t * t / nu));  // about N(0, 1)
  return 0.5 * std::erfc(normal / std::sqrt(2.0));
}

double freedom_of_quantile_ratio(double ratio) {
  struct Entry {
    double freedom;
    double ratio;
  };
  static const auto kTable = [] {
    std::array<Entry, 128> table{};
    for (size_t i = 0; i < table.size(); ++i) {
      const double freedom = 0.5 * std::pow(2000.0, static_cast<double>(i) / 127);
      table[i] = {freedom, student_t_quantile(0.999, freedom) / student_t_quantile(0.95, freedom)};
    }
    return table;
  }();
  if (!(ratio < kTable.front().ratio)) return kTable.front().freedom;
  for (size_t i = 1; i < kTable.size(); ++i) {
    if (ratio < kTable[i].ratio) continue;
    const double share = (kTable[i - 1].ratio - ratio) / (kTable[i - 1].ratio - kTable[i].ratio);
    return kTable[i - 1].freedom + share * (kTable[i].freedom - kTable[i - 1].freedom);
  }
  return kTable.back().freedom;
}

}  // namespace tycho::analyzer
