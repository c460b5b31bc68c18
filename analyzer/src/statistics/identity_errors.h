#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// Relative errors of an identity that is exact but for rounding. Nothing is random here, so the
/// verdict counts: HOLDS where at most 5 % of the steps exceed the tolerance (a residual is
/// ill-defined when both sides nearly vanish), VIOLATED from 50 %, else UNDERPOWERED.
class IdentityErrors {
 public:
  /// Leaves out what is not finite.
  void add(double error, double tolerance, int64_t step) {
    if (!std::isfinite(error)) return;
    ++observed_;
    above_ += error > tolerance;
    sum_ += error;
    smallest_ = std::min(smallest_, error);
    largest_ = std::max(largest_, error);
    if (begin_ < 0) begin_ = step;
    end_ = step;
  }

  uint64_t observed() const { return observed_; }
  double largest() const { return largest_; }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }

  Verdict verdict() const {
    if (observed_ == 0) return Verdict::kNotYet;
    const double share = static_cast<double>(above_) / static_cast<double>(observed_);
    if (share <= 0.05) return Verdict::kHolds;
    return share >= 0.5 ? Verdict::kViolated : Verdict::kUnderpowered;
  }

  /// measured: mean error; interval: smallest and largest.
  void describe(Finding& finding) const {
    finding.unit = "1";
    finding.predicted = 0;
    finding.measured = observed_ > 0 ? sum_ / static_cast<double>(observed_) : kUnknown;
    finding.ci_low = observed_ > 0 ? smallest_ : kUnknown;
    finding.ci_high = observed_ > 0 ? largest_ : kUnknown;
    finding.confidence = 1;
    finding.window_begin = begin_;
    finding.window_end = end_;
  }

  /// Distance from 1 to the next number of the format.
  static double epsilon(const std::string& dtype) {
    if (dtype == "double") return 2.220446049250313e-16;
    if (dtype == "half") return 9.765625e-4;
    if (dtype == "bfloat16") return 7.8125e-3;
    return 1.1920928955078125e-7;
  }

  /// Rounding of such an identity in the number format of the parameters, with room for long sums.
  static double tolerance(const std::string& dtype) {
    if (dtype == "double") return 1e-8;
    if (dtype == "half" || dtype == "bfloat16") return 1e-2;
    return 1e-3;
  }

 private:
  uint64_t observed_ = 0;
  uint64_t above_ = 0;
  double sum_ = 0;
  double smallest_ = std::numeric_limits<double>::infinity();
  double largest_ = 0;
  int64_t begin_ = -1;
  int64_t end_ = -1;
};

}  // namespace tycho::analyzer
