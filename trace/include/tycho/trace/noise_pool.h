#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace tycho::trace {

/// The current gradient noise scale, pooled over the recent past.
struct PooledNoiseScale {
  /// tr Sigma / |G|^2 in examples; NaN if the window is too short to determine it within a factor
  /// of ten, or if the gradient changes its scale within the window.
  double value = std::numeric_limits<double>::quiet_NaN();
  /// The 95 % interval. `low` is known from the fourth observation on, before `value` is; `high` is
  /// +infinity if the signal is not resolved from zero.
  double low = std::numeric_limits<double>::quiet_NaN();
  double high = std::numeric_limits<double>::quiet_NaN();
  double standard_error = std::numeric_limits<double>::quiet_NaN();  ///< NaN where `value` is
  int64_t begin = -1;                                                ///< first step of the window
  int64_t end = -1;                                                  ///< last step of the window
  uint64_t observations = 0;                                         ///< in the window
};

/// Pools unbiased estimates of S = tr Sigma and G = |G|^2, one pair per observed step, to the ratio
/// of their means over a window that ends now. Probe and analyzer both compute it here, so their
/// numbers agree.
///
/// The window. From the last 8 observations on, a window is doubled into the past as long as its
/// older and its newer half agree: the ratio to three standard errors, and the scales of S and of
/// G, if three standard errors distinguish them, to a factor of 2. If not even the last 8
/// observations have one scale, only bounds are given.
///
/// The interval is Fieller's for G/S, with Student's quantile. The covariance of the means is taken
/// from the scatter about the means of the two halves, steps being independent draws of examples.
/// The halves also tell how far the window's mean lags behind now, if it drifts: their difference D
/// is added to the covariance as D D', and the covariance counts threefold, because D is not known
/// better. A drift of S and G by one factor leaves the ratio alone, and widens nothing. Without a
/// drift the interval is more than twice as wide as necessary; that is the price for coverage under
/// a drift that is too slow to be seen. Within the window S and G may fluctuate: the value refers
/// to their averages.
///
/// Memory: means and second moments in buckets of 1, 2, 4, ... observations, at most 8 of a size,
/// the largest 1024: about 5 kB, and windows of up to 16000 observations. add() and pooled() take
/// about a microsecond. Not thread-safe.
class NoisePool {
 public:
  /// What is not finite is left out.
  void add(double trace, double signal, int64_t step) {
    if (!std::isfinite(trace) || !std::isfinite(signal)) return;
    Bucket bucket;
    bucket.count = 1;
    bucket.begin = step;
    bucket.trace = trace;
    bucket.signal = signal;
    buckets_.push_back(bucket);
    end_ = step;
    merge_old();
  }

  /// Observations that are remembered.
  uint64_t observations() const {
    uint64_t sum = 0;
    for (const Bucket& bucket : buckets_) sum += bucket.count;
    return sum;
  }

  PooledNoiseScale pooled() const {
    size_t next = buckets_.size();  // buckets from here on are in the window
    const auto take = [&](uint64_t wanted) {
      Bucket part;
      while (next > 0 && part.count < wanted) part = joined(buckets_[--next], part);
      return part;
    };
    PooledNoiseScale result;
    Bucket newer = take(kShortest / 2);
    Bucket older = take(kShortest / 2);
    if (older.count + newer.count < kFewest) return result;
    if (older.count < 2) {  // 4 observations: two and two
      next = buckets_.size();
      newer = take(2);
      older = take(2);
    }
    const bool one_scale = compare(older, newer).one_scale;
    Bucket window = joined(older, newer);
    while (one_scale) {
      const Bucket before = take(window.count);
      if (2 * before.count < window.count) break;
      const Comparison comparison = compare(before, window);
      if (!comparison.one_scale || !comparison.one_ratio) break;
      older = before;
      newer = window;
      window = joined(before, window);
    }
    estimate(older, newer, one_scale, &result);
    return result;
  }

 private:
  static constexpr uint64_t kFewest = 4;
  static constexpr uint64_t kShortest = 8;
  static constexpr size_t kMostOfASize = 8;
  static constexpr uint64_t kLargest = 1024;
  static constexpr double kSigmas = 3;
  static constexpr double kSameScale = 2;
  static constexpr double kWidest = 10;      // high over low, for a value
  static constexpr double kNoiseFactor = 3;  // on the covariance of the means

  /// Of `count` observations: means, and sums of products of deviations from them.
  struct Bucket {
    uint64_t count = 0;
    int64_t begin = -1;
    double trace = 0;
    double signal = 0;
    double trace_trace = 0;
    double trace_signal = 0;
    double signal_signal = 0;
  };
  struct Comparison {
    bool one_scale = false;
    bool one_ratio = false;
  };

  static Bucket joined(const Bucket& older, const Bucket& newer) {
    if (newer.count == 0) return older;
    Bucket sum;
    sum.count = older.count + newer.count;
    sum.begin = older.begin;
    const auto n = static_cast<double>(sum.count);
    const double share = static_cast<double>(newer.count) / n;
    const double weight = static_cast<double>(older.count) * share;
    const double trace = newer.trace - older.trace;
    const double signal = newer.signal - older.signal;
    sum.trace = older.trace + share * trace;
    sum.signal = older.signal + share * signal;
    sum.trace_trace = older.trace_trace + newer.trace_trace + weight * trace * trace;
    sum.trace_signal = older.trace_signal + newer.trace_signal + weight * trace * signal;
    sum.signal_signal = older.signal_signal + newer.signal_signal + weight * signal * signal;
    return sum;
  }

  /// Where there are too many of a size, the two oldest become one of twice the size.
  void merge_old() {
    uint64_t size = 1;
    size_t end = buckets_.size();
    while (true) {
      size_t begin = end;
      while (begin > 0 && buckets_[begin - 1].count == size) --begin;
      if (end - begin <= kMostOfASize) return;
      if (size == kLargest) {
        buckets_.erase(buckets_.begin() + static_cast<std::ptrdiff_t>(begin));
        return;
      }
      buckets_[begin] = joined(buckets_[begin], buckets_[begin + 1]);
      buckets_.erase(buckets_.begin() + static_cast<std::ptrdiff_t>(begin) + 1);
      end = begin + 1;
      size *= 2;
    }
  }

  static Comparison compare(const Bucket& older, const Bucket& newer) {
    const double within = static_cast<double>(older.count + newer.count) - 2;
    const double scale =
        (1 / static_cast<double>(older.count) + 1 / static_cast<double>(newer.count)) / within;
    const double trace_variance = scale * (older.trace_trace + newer.trace_trace);
    const double signal_variance = scale * (older.signal_signal + newer.signal_signal);
    const double covariance = scale * (older.trace_signal + newer.trace_signal);
    const double trace = newer.trace - older.trace;
    const double signal = newer.signal - older.signal;
    const auto same = [](double a, double b, double variance) {
      const double smaller = std::min(std::fabs(a), std::fabs(b));
      const double allowed = (a > 0) == (b > 0) ? (kSameScale - 1) * smaller : 0;
      return std::fabs(a - b) <= std::max(allowed, kSigmas * std::sqrt(variance));
    };
    Comparison result;
    result.one_scale = same(older.trace, newer.trace, trace_variance) &&
                       same(older.signal, newer.signal, signal_variance);
    const Bucket both = joined(older, newer);
    const double ratio = both.trace > 0 ? both.signal / both.trace : 0;
    const double variance =
        signal_variance - 2 * ratio * covariance + ratio * ratio * trace_variance;
    const double difference = signal - ratio * trace;
    result.one_ratio = difference * difference <= kSigmas * kSigmas * std::max(variance, 0.0);
    return result;
  }

  /// Student's two-sided 95 % quantile, by the expansion of Cornish and Fisher: 2 % low with two
  /// degrees of freedom, exact to 0.1 % from five on.
  static double student_quantile(double freedom) {
    return 1.959964 +
           (2.372272 + (2.822507 + (2.555852 + 1.589536 / freedom) / freedom) / freedom) / freedom;
  }

  void estimate(const Bucket& older, const Bucket& newer, bool one_scale,
                PooledNoiseScale* result) const {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const Bucket window = joined(older, newer);
    result->begin = window.begin;
    result->end = end_;
    result->observations = window.count;
    const auto count = static_cast<double>(window.count);
    const double scale = kNoiseFactor / (count * (count - 2));
    const double trace_drift = newer.trace - older.trace;
    const double signal_drift = newer.signal - older.signal;
    const double tt = scale * (older.trace_trace + newer.trace_trace) + trace_drift * trace_drift;
    const double ts =
        scale * (older.trace_signal + newer.trace_signal) + trace_drift * signal_drift;
    const double ss =
        scale * (older.signal_signal + newer.signal_signal) + signal_drift * signal_drift;
    const double t = student_quantile(count - 2);
    // Fieller: all r with (signal - r trace)^2 <= t^2 Var(signal - r trace), r = G/S.
    const double a = window.trace * window.trace - t * t * tt;
    const double b = window.trace * window.signal - t * t * ts;
    const double c = window.signal * window.signal - t * t * ss;
    const double root = std::sqrt(std::max(0.0, b * b - a * c));
    result->low = 0;
    result->high = kInfinity;
    double ratio = kInfinity;
    double error = 0;
    if (a > 0 && window.trace > 0) {
      const double inverse = window.signal / window.trace;
      error =
          std::sqrt(std::max(0.0, ss - 2 * inverse * ts + inverse * inverse * tt)) / window.trace;
      // The signal is a square: a mean below zero is chance, and bounds no less than one at zero.
      const double largest = std::max((b + root) / a, t * error);
      const double smallest = (b - root) / a;
      if (largest > 0) result->low = 1 / largest;
      if (largest == 0) result->low = kInfinity;  // noise, and no signal at all
      if (smallest > 0) result->high = 1 / smallest;
      if (inverse > 0) ratio = 1 / inverse;
      error *= ratio * ratio;
    } else if (c > 0 && window.signal > 0) {
      // Hardly any noise.
      ratio = std::max(0.0, window.trace / window.signal);
      error = std::sqrt(std::max(0.0, tt - 2 * ratio * ts + ratio * ratio * ss)) / window.signal;
      result->low = std::max(0.0, (b - root) / c);
      result->high = std::max(0.0, (b + root) / c);
    }
    const bool narrow = result->high <= std::max(kWidest * result->low, 1.0);
    if (!one_scale || !narrow || !std::isfinite(ratio)) return;
    result->value = ratio;
    result->standard_error = error;
  }

  std::vector<Bucket> buckets_;  // oldest first
  int64_t end_ = -1;
};

}  // namespace tycho::trace
