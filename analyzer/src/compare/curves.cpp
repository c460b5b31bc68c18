#include "src/compare/curves.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tycho::analyzer {
namespace {

/// ln(x + 1): steps count from 0.
double log_of(double x) { return std::log1p(std::max(x, 0.0)); }

double between(double from, double to, double share) { return from + share * (to - from); }

Position between(const Position& from, const Position& to, double share) {
  Position result;
  // Equal ratios on the way, as bins are.
  result.step = std::expm1(between(log_of(from.step), log_of(to.step), share));
  result.examples = std::exp(between(std::log(from.examples), std::log(to.examples), share));
  result.seconds = between(from.seconds, to.seconds, share);
  return result;
}

}  // namespace

std::string loss_statistic(const RunSet& set, const std::vector<size_t>& runs) {
  constexpr size_t kFewestBins = 16;
  const bool probed = std::all_of(runs.begin(), runs.end(), [&](size_t run) {
    const auto* series = set.runs()[run].series("probe_loss");
    return series != nullptr && series->size() >= kFewestBins;
  });
  return probed && !runs.empty() ? "probe_loss" : "loss";
}

double Curve::lowest() const {
  double least = std::numeric_limits<double>::infinity();
  for (const Point& point : points) least = std::min(least, point.value);
  return least;
}

double Curve::at(double x, Alignment by) const {
  for (size_t i = 0; i < points.size(); ++i) {
    const double here = points[i].position.by(by);
    if (here == x) return points[i].value;
    if (here < x || std::isnan(here)) continue;
    if (i == 0) return kUnknown;
    const double before = points[i - 1].position.by(by);
    const double share = (log_of(x) - log_of(before)) / (log_of(here) - log_of(before));
    return between(points[i - 1].value, points[i].value, share);
  }
  return kUnknown;
}

Position Curve::first_at_or_below(double target) const {
  for (size_t i = 0; i < points.size(); ++i) {
    if (!(points[i].value <= target)) continue;
    if (i == 0) return points[0].position;
    const double above = points[i - 1].value;
    return between(points[i - 1].position, points[i].position,
                   (above - target) / (above - points[i].value));
  }
  return Position();
}

Curve smooth_curve(const RunDigest& run, const std::string& statistic, size_t reach) {
  Curve curve;
  const auto* bins = run.series(statistic);
  if (bins == nullptr) return curve;
  std::vector<const RunBin*> good;
  for (const RunBin& bin : *bins) {
    if (bin.non_finite > 0) {
      curve.diverged = true;
      break;
    }
    if (bin.count > 0) good.push_back(&bin);
  }
  for (size_t i = 0; i < good.size(); ++i) {
    const size_t side = std::min({reach, i, good.size() - 1 - i});
    double sum = 0;
    for (size_t j = i - side; j <= i + side; ++j) sum += good[j]->mean;
    curve.points.push_back({good[i]->position, sum / static_cast<double>(2 * side + 1)});
  }
  return curve;
}

double common_end(const std::vector<Curve>& curves, Alignment by) {
  double end = curves.empty() ? kUnknown : std::numeric_limits<double>::infinity();
  for (const Curve& curve : curves) {
    const double last = curve.last(by);
    end = std::isnan(last) || std::isnan(end) ? kUnknown : std::min(end, last);
  }
  return end;
}

double common_begin(const std::vector<Curve>& curves, Alignment by) {
  double begin = curves.empty() ? kUnknown : -std::numeric_limits<double>::infinity();
  for (const Curve& curve : curves) {
    const double first = curve.first(by);
    begin = std::isnan(first) || std::isnan(begin) ? kUnknown : std::max(begin, first);
  }
  return begin;
}

}  // namespace tycho::analyzer
