#include "src/compare/slopes.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace tycho::analyzer {
namespace {

/// Value at a step: measured, or on the line through its neighbours in both logarithms; NaN where
/// there are none close by.
double value_at(const Observations& series, double step) {
  constexpr double kWidestGap = 4;
  const auto after =
      std::lower_bound(series.begin(), series.end(), step,
                       [](const auto& point, double at) { return point.first < at; });
  if (after != series.end() && after->first == step) return after->second;
  if (after == series.end() || after == series.begin()) return kUnknown;
  const auto before = std::prev(after);
  const double low = before->first + 1;
  const double high = after->first + 1;
  if (high > kWidestGap * low) return kUnknown;
  const double at = std::log((step + 1) / low) / std::log(high / low);
  return std::exp((1 - at) * std::log(before->second) + at * std::log(after->second));
}

}  // namespace

Estimate log_log_slope(const std::vector<std::pair<double, double>>& points, double confidence) {
  Estimate result;
  std::vector<std::pair<double, double>> logs;
  for (const auto& [x, y] : points) {
    if (!(x > 0) || !(y > 0) || std::isinf(x) || std::isinf(y)) continue;
    logs.emplace_back(std::log(x), std::log(y));
  }
  result.observations = logs.size();
  result.blocks = logs.size();
  const double count = static_cast<double>(logs.size());
  double mean_x = 0;
  double mean_y = 0;
  for (const auto& [x, y] : logs) {
    mean_x += x / count;
    mean_y += y / count;
  }
  double xx = 0;
  double xy = 0;
  for (const auto& [x, y] : logs) {
    xx += (x - mean_x) * (x - mean_x);
    xy += (x - mean_x) * (y - mean_y);
  }
  if (logs.size() < 2 || !(xx > 1e-12)) return result;
  result.value = xy / xx;
  if (logs.size() < 3) return result;
  double residual = 0;
  for (const auto& [x, y] : logs) {
    const double error = y - mean_y - result.value * (x - mean_x);
    residual += error * error;
  }
  result.degrees_of_freedom = count - 2;
  result.standard_error = std::sqrt(residual / result.degrees_of_freedom / xx);
  const double half =
      student_t_quantile(confidence, result.degrees_of_freedom) * result.standard_error;
  result.low = result.value - half;
  result.high = result.value + half;
  result.reliable = std::isfinite(result.value) && std::isfinite(half);
  return result;
}

LadderSlope ladder_slope(const RunSet& set, const Ladder& ladder,
                         const std::function<Observations(size_t run)>& observe,
                         size_t most_steps) {
  LadderSlope result;
  struct Member {
    double value;
    Observations series;
  };
  std::vector<Member> members;
  for (const Level& level : ladder.levels) {
    for (const size_t run : level.runs) {
      Observations positive;
      for (const auto& [step, value] : observe(run)) {
        if (value > 0 && std::isfinite(value)) positive.emplace_back(step, value);
      }
      if (!positive.empty()) members.push_back({set.value(ladder.axis, run), std::move(positive)});
    }
  }
  std::set<double> levels;
  for (const Member& member : members) levels.insert(member.value);
  result.levels = levels.size();
  result.runs = members.size();
  if (members.empty()) return result;
  const auto sparsest = std::min_element(
      members.begin(), members.end(),
      [](const Member& a, const Member& b) { return a.series.size() < b.series.size(); });
  std::vector<double> sum(members.size(), 0.0);
  for (const auto& [step, unused] : sparsest->series) {
    if (result.steps.size() == most_steps) break;
    std::vector<double> value;
    value.reserve(members.size());
    for (const Member& member : members) value.push_back(value_at(member.series, step));
    if (std::any_of(value.begin(), value.end(), [](double v) { return !(v > 0); })) continue;
    LadderSlope::AtStep at;
    at.step = step;
    std::vector<std::pair<double, double>> points;
    for (size_t m = 0; m < members.size(); ++m) {
      points.emplace_back(members[m].value, value[m]);
      sum[m] += std::log(value[m]);
    }
    at.slope = log_log_slope(points);
    result.steps.push_back(at);
  }
  if (result.steps.empty()) return result;
  for (size_t m = 0; m < members.size(); ++m) {
    result.points.emplace_back(members[m].value,
                               std::exp(sum[m] / static_cast<double>(result.steps.size())));
  }
  result.slope = log_log_slope(result.points);
  return result;
}

Observations layer_observations(const RunDigest& run, const std::string& statistic,
                                const std::string& layer) {
  Observations result;
  const auto* bins = run.layers(statistic);
  const int id = run.layer_id(layer);
  if (bins == nullptr || id < 0) return result;
  for (const LayerBin& bin : *bins) {
    if (static_cast<size_t>(id) >= bin.cell.size()) continue;
    const LayerCell& cell = bin.cell[static_cast<size_t>(id)];
    if (is_measured(cell.first)) {
      result.emplace_back(static_cast<double>(bin.first_step), cell.first);
    }
  }
  return result;
}

Observations run_observations(const RunDigest& run, const std::string& statistic) {
  Observations result;
  const auto* bins = run.series(statistic);
  if (bins == nullptr) return result;
  for (const RunBin& bin : *bins) {
    if (bin.count > 0) result.emplace_back(bin.position.step, bin.mean);
  }
  return result;
}

Verdict judge_exponent(const Estimate& slope, double tolerance, double excluded) {
  if (!slope.reliable) return Verdict::kUnderpowered;
  if (slope.low > tolerance || slope.high < -tolerance) return Verdict::kViolated;
  const bool inside = slope.low > -excluded && slope.high < excluded;
  return std::fabs(slope.value) <= tolerance && inside ? Verdict::kHolds : Verdict::kUnderpowered;
}

}  // namespace tycho::analyzer
