#include "src/incident/movement.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

constexpr double kNormal = 1.4826;        // standard deviations of a normal one per median distance
constexpr double kLeastSpread = 1e-3;     // of the value: below it a series is as good as constant
constexpr double kFalseRate = 0.01;       // of one incident, over all comparisons
constexpr double kBeyondFurthest = 1.25;  // of all before
constexpr double kAlone = 2;              // times the limits
constexpr double kUsual = 3;              // spreads
constexpr size_t kUpTo = 2;               // observations before the last one up to the incident

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// The range of a series before the window.
struct Usual {
  double median = 0;
  double spread = 0;
  double furthest = 0;
};

Usual usual_of(const std::vector<double>& before, size_t lag, bool logarithms) {
  Usual result;
  result.median = median(before);
  std::vector<double> distances;
  distances.reserve(before.size());
  for (const double value : before) distances.push_back(std::fabs(value - result.median));
  result.furthest = *std::max_element(distances.begin(), distances.end());
  result.spread = median(std::move(distances));
  lag = std::clamp<size_t>(lag, 1, before.size() / 2);
  std::vector<double> changes;
  for (size_t i = lag; i < before.size(); ++i)
    changes.push_back(std::fabs(before[i] - before[i - lag]));
  result.spread = std::max(result.spread, median(std::move(changes)));
  result.spread =
      std::max(kNormal * result.spread, kLeastSpread * (logarithms ? 1 : std::fabs(result.median)));
  return result;
}

class Window {
 public:
  Window(const std::vector<Observation>& seen, size_t first, const Usual& usual, double limit,
         bool rises_only)
      : seen_(seen), first_(first), usual_(usual), limit_(limit), rises_only_(rises_only) {}

  bool exists(size_t i) const { return i >= first_ && i < seen_.size(); }
  bool outside(size_t i, double times = 1) const {
    if (!exists(i)) return false;
    if (!std::isfinite(seen_[i].value)) return true;
    const double off = seen_[i].value - usual_.median;
    return (rises_only_ ? off : std::fabs(off)) > times * limit_;
  }
  bool usual(size_t i) const {
    return std::isfinite(seen_[i].value) &&
           std::fabs(seen_[i].value - usual_.median) <= kUsual * usual_.spread;
  }
  /// It is outside, and not by chance: a neighbour is too, or it is far outside.
  bool surely(size_t i) const {
    return outside(i) && (outside(i - 1) || outside(i + 1) || outside(i, kAlone));
  }

 private:
  const std::vector<Observation>& seen_;
  size_t first_;
  Usual usual_;
  double limit_;
  bool rises_only_;
};

}  // namespace

Movement find_movement(const std::vector<Observation>& seen, const MovementQuery& query) {
  Movement result;
  std::vector<double> before;
  size_t first = 0;
  for (; first < seen.size() && seen[first].step < query.from; ++first) {
    if (std::isfinite(seen[first].value)) before.push_back(seen[first].value);
  }
  size_t upto = first;  // one past the last one up to the incident
  while (upto < seen.size() && seen[upto].step <= query.incident) ++upto;
  const bool enough = before.size() >= Movement::kFewestBefore;
  // Without a range of before only what is not finite is outside.
  double limit = std::numeric_limits<double>::infinity();
  Usual usual{0, std::numeric_limits<double>::infinity(), 0};
  if (enough) {
    usual = usual_of(before, upto - first, query.logarithms);
    const double looks = query.comparisons * static_cast<double>(seen.size() - first + 1);
    const double quantile =
        student_t_quantile(1 - kFalseRate / looks, 0.5 * static_cast<double>(before.size()));
    limit = std::max({quantile * usual.spread, kBeyondFurthest * usual.furthest, query.least});
    result.state = Movement::State::kStayed;
    result.usual = usual.median;
    result.spread = usual.spread;
  }
  const Window window(seen, first, usual, limit, query.rises_only);
  size_t at = seen.size();
  for (size_t back = 0; back <= kUpTo && upto > first + back; ++back) {
    const size_t i = upto - 1 - back;
    if (!window.outside(i)) continue;
    if (seen[i].step == query.incident || window.surely(i)) at = i;
    break;
  }
  for (size_t i = upto; i < seen.size() && at == seen.size(); ++i) {
    if (window.surely(i)) at = i;
  }
  if (at == seen.size()) return result;
  while (window.outside(at - 1) || (window.outside(at - 2) && window.exists(at - 1)))
    at -= window.outside(at - 1) ? 1 : 2;
  // One that is alone in front of the others may be chance.
  while (!window.outside(at, kAlone) && !window.outside(at + 1) && window.outside(at + 2) &&
         seen[at + 2].step <= query.incident)
    at += 2;
  result.state = Movement::State::kMoved;
  result.moved = seen[at].step;
  result.value = seen[at].value;
  for (size_t i = at; i-- > 0;) {
    if (!window.usual(i)) continue;
    result.within = seen[i].step;
    break;
  }
  return result;
}

}  // namespace tycho::analyzer
