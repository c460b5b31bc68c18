#include "src/loss/progress_end.h"

#include <algorithm>
#include <cmath>

#include "src/statistics/long_run_variance.h"
#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kFewestLosses = 64;
constexpr size_t kFewest = 24;  // stretches
constexpr double kLeastShare = 1.0 / 3;
constexpr double kRest = 0.02;       // of the fall, or of the level
constexpr double kLittleFall = 0.2;  // of the first loss
constexpr double kTooSlow = 0.05;    // probability
constexpr double kSearched = 0.98;   // confidence
constexpr double kConfidence = 0.95;
constexpr double kRateKept = 0.5;         // of its peak
constexpr size_t kBegins = 64;            // that are tried
constexpr double kNormalQuantile = 1.64;  // of a first, cheap look

/// Means over any part. Not from running sums: after a loss of 1e30 these say nothing of what
/// follows.
class Course {
 public:
  explicit Course(const std::vector<LossStretch>& all) : all_(all) {}
  size_t size() const { return all_.size(); }
  double mean(size_t begin, size_t end) const {
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += all_[i].mean;
    return sum / static_cast<double>(end - begin);
  }
  double variance(size_t begin) const {
    const double mean = this->mean(begin, size());
    double square = 0;
    for (size_t i = begin; i < size(); ++i) square += (all_[i].mean - mean) * (all_[i].mean - mean);
    return square / static_cast<double>(size() - begin - 1);
  }
  double lowest_tenth() const {
    const size_t width = std::max<size_t>(1, size() / 10);
    double lowest = mean(0, width);
    for (size_t end = size(); end >= width; end -= width)
      lowest = std::min(lowest, mean(end - width, end));
    return lowest;
  }

 private:
  const std::vector<LossStretch>& all_;
};

/// The rate is what keeps the loss where it is, or may be.
bool rate_is_low(const std::vector<LossStretch>& all, size_t begin) {
  double peak = 0;
  for (size_t i = 0; i <= begin; ++i) peak = std::fmax(peak, all[i].rate);
  const size_t end = begin + (all.size() - begin) / 4;
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += all[i].rate;
  return sum / static_cast<double>(end - begin) < kRateKept * peak;
}

}  // namespace

std::optional<ProgressEnd> progress_end(const LossCourse& course) {
  const std::vector<LossStretch> all = course.stretches();
  if (course.observed() - course.not_finite() < kFewestLosses || all.size() < kFewest)
    return std::nullopt;
  const Course means(all);
  const double lowest = means.lowest_tenth();
  ProgressEnd result;
  result.start = start_of(all);
  // Of a run that broke early and was repaired, the first loss is where it began.
  if (course.not_finite() > 0) result.start = std::fmin(result.start, course.first().value);
  result.last = all.back().end;
  result.steps = static_cast<double>(result.last) - static_cast<double>(all.front().begin) + 1;
  if (!(result.steps > 0)) return std::nullopt;  // steps of a file may go back
  const size_t stride = std::max<size_t>(1, all.size() / kBegins);
  for (size_t begin = 0; begin + kFewest <= all.size(); begin += stride) {
    result.step = all[begin].begin;
    result.after = static_cast<double>(result.last) - static_cast<double>(result.step) + 1;
    if (result.share() < kLeastShare) return std::nullopt;
    const size_t eighth = (all.size() - begin) / 8;
    const size_t half = (all.size() - begin) / 2;
    result.first = means.mean(begin, begin + eighth);
    result.level = means.mean(all.size() - half, all.size());
    const double fallen = result.start - result.level;
    if (!(fallen > kLittleFall * std::fabs(result.start))) continue;
    result.at_zero = course.lowest().value >= 0 && result.first <= kRest * result.start;
    const double allowed =
        kRest * (result.at_zero ? fallen : std::min(fallen, std::fabs(result.level)));
    double most = result.first;
    for (size_t i = 1; i < 4; ++i)
      most = std::max(most, means.mean(begin + i * eighth, begin + (i + 1) * eighth));
    most -= result.level;
    const double white = std::sqrt(
        means.variance(begin) * (1 / static_cast<double>(eighth) + 1 / static_cast<double>(half)));
    if (most + kNormalQuantile * white > allowed || result.level - lowest > allowed + 2 * white)
      continue;
    std::vector<double> values;
    values.reserve(all.size() - begin);
    for (size_t i = begin; i < all.size(); ++i) values.push_back(all[i].mean);
    const LongRunVariance noise = long_run_variance(values);
    const double error = white * std::sqrt(noise.inflation);
    const double searched = student_t_quantile(kSearched, noise.degrees_of_freedom) * error;
    // A loss that is positive and near zero has nowhere to fall to: its trend may stay.
    if ((noise.too_slow > kTooSlow && !result.at_zero) || most + searched > allowed) continue;
    if (!result.at_zero && rate_is_low(all, begin)) return std::nullopt;
    const double quantile = student_t_quantile(kConfidence, noise.degrees_of_freedom);
    result.fall = result.first - result.level;
    result.low = result.fall - quantile * error;
    result.high = result.fall + quantile * error;
    result.at_most = std::max(0.0, most + quantile * error);
    size_t earliest = begin;
    while (earliest > 0 &&
           means.mean(earliest - 1, earliest - 1 + eighth) - result.level - searched <= allowed)
      --earliest;
    result.earliest = all[earliest].begin;
    return result;
  }
  return std::nullopt;
}

}  // namespace tycho::analyzer
