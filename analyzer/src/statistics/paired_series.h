#pragma once

#include <cmath>
#include <cstdint>

#include "src/statistics/recent_half.h"

namespace tycho::analyzer {

/// Two series that are measured at steps of their own, for the ratio of their means: averages of
/// what came since the last pair make a pair, as soon as there is one of each.
class PairedSeries {
 public:
  /// NaN and infinite values: not measured at this step.
  void add(double first, double second, int64_t step) {
    take(first, &first_);
    take(second, &second_);
    if (first_.count == 0 || second_.count == 0) return;
    pairs_.add({first_.sum / first_.count, second_.sum / second_.count}, step);
    first_ = second_ = {};
  }

  void clear() {
    first_ = second_ = {};
    pairs_.clear();
  }

  const RecentHalf& pairs() const { return pairs_; }
  uint64_t observations() const { return pairs_.blocks().observations(); }
  /// <first>/<second>
  Estimate ratio() const { return pairs_.blocks().ratio({1, 0}, {0, 1}); }
  double mean_first() const { return pairs_.blocks().mean({1, 0}).value; }
  double mean_second() const { return pairs_.blocks().mean({0, 1}).value; }

 private:
  struct Sum {
    double sum = 0;
    double count = 0;
  };

  static void take(double value, Sum* into) {
    if (!std::isfinite(value)) return;
    into->sum += value;
    into->count += 1;
  }

  Sum first_;
  Sum second_;
  RecentHalf pairs_{2};
};

}  // namespace tycho::analyzer
