#include "standing_out.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "layer_names.h"
#include "remarks.h"

namespace tycho::analyzer {
namespace {

/// What is looked at, with the name for people; of squares, the root.
struct Quantity {
  const char* statistic;
  const char* name;
  bool square;
};
constexpr Quantity kQuantities[] = {
    {"grad_norm_sq", "norm of the gradient", true},
    {"update_norm_sq", "norm of the update", true},
    {"weight_norm_sq", "norm of the weights", true},
    {"activation_rms", "size of the output", false},
    {"activation_grad_rms", "size of the output's gradient", false}};

constexpr double kNamed = 100;
constexpr double kNotFinite = 80;
constexpr double kViolated = 50;
constexpr double kJump = 20;
constexpr double kUnlikePeers = 10;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

class Search {
 public:
  explicit Search(const Report& report)
      : report_(report), layers_(static_cast<size_t>(report.model.layer_size())) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      const v1::Layer& layer = report.model.layer(static_cast<int>(i));
      of_scope_.emplace("layer:" + layer.path(), i);
      peers_[kind_of(layer)].push_back(i);
    }
    for (const v1::Parameter& parameter : report.model.parameter())
      of_scope_.emplace("param:" + parameter.name(), parameter.layer());
  }

  void named() {
    for (const Decision& each : report_.decisions)
      add(each.scope, kNamed, "decision: " + each.title);
    for (const Remark& each : remarks(report_)) add(each.scope, kNamed, each.title);
    for (const Finding& each : report_.findings) {
      if (each.verdict != Verdict::kViolated) continue;
      const LawDescription* law = report_.law(each.law);
      add(each.scope, kViolated * each.importance,
          fmt::format("{}: VIOLATED", law != nullptr ? law->title : each.law));
    }
  }

  void measured() {
    for (const Quantity& quantity : kQuantities) look_at(quantity);
  }

  std::vector<StandingOut> take(size_t most) {
    std::vector<StandingOut> result;
    for (size_t i = 0; i < layers_.size(); ++i) {
      auto& reasons = layers_[i];
      if (reasons.empty()) continue;
      std::stable_sort(reasons.begin(), reasons.end(),
                       [](const auto& a, const auto& b) { return a.first > b.first; });
      StandingOut layer;
      layer.layer = static_cast<uint32_t>(i);
      layer.score = reasons.front().first;
      for (auto& [score, why] : reasons) {
        if (std::find(layer.why.begin(), layer.why.end(), why) == layer.why.end())
          layer.why.push_back(std::move(why));
      }
      result.push_back(std::move(layer));
    }
    std::stable_sort(result.begin(), result.end(),
                     [](const StandingOut& a, const StandingOut& b) { return a.score > b.score; });
    if (result.size() > most) result.resize(most);
    return result;
  }

 private:
  void add(size_t layer, double score, std::string why) {
    if (layer < layers_.size()) layers_[layer].emplace_back(score, std::move(why));
  }
  void add(const std::string& scope, double score, const std::string& why) {
    const auto found = of_scope_.find(scope);
    if (found != of_scope_.end()) add(found->second, score, why);
  }
  int64_t step(size_t bucket) const {
    return report_.series.first_step() +
           static_cast<int64_t>(bucket) * report_.series.steps_per_bucket();
  }

  void look_at(const Quantity& quantity) {
    const SeriesStore::Key key{quantity.statistic, v1::SCOPE_LAYER};
    const double power = quantity.square ? 0.5 : 1;
    std::vector<double> last(layers_.size(), kUnknown);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const auto buckets = report_.series.series(key, i);
      // A norm or a size is finite in a run that is; other statistics need not be.
      const auto broken = std::find_if(buckets.begin(), buckets.end(),
                                       [](const Bucket& bucket) { return bucket.non_finite > 0; });
      if (broken != buckets.end()) {
        add(i, kNotFinite,
            fmt::format("{} not finite, first at about step {}", quantity.name,
                        step(static_cast<size_t>(broken - buckets.begin()))));
      }
      std::vector<double> means;
      double largest = 0;
      size_t at = 0;
      // What training begins with is no jump.
      for (size_t b = buckets.size() / 10; b < buckets.size(); ++b) {
        if (buckets[b].count == 0) continue;
        means.push_back(buckets[b].mean());
        if (buckets[b].max > largest) {
          largest = buckets[b].max;
          at = b;
        }
      }
      if (means.empty()) continue;
      last[i] = std::pow(means.back(), power);
      if (means.size() < 8) continue;
      const double factor = std::pow(largest / median(means), power);
      if (std::isfinite(factor) && factor >= 5) {
        add(i, kJump + std::min(10.0, std::log10(factor)),
            fmt::format("{} reached {:.2g} times its median around step {}", quantity.name, factor,
                        step(at)));
      }
    }
    for (const auto& [kind, members] : peers_) unlike_peers(quantity, members, last);
  }

  void unlike_peers(const Quantity& quantity, const std::vector<size_t>& members,
                    const std::vector<double>& last) {
    std::vector<double> logs;
    for (const size_t i : members) {
      if (last[i] > 0 && std::isfinite(last[i])) logs.push_back(std::log10(last[i]));
    }
    if (logs.size() < 8) return;
    const double centre = median(logs);
    std::vector<double> deviations;
    deviations.reserve(logs.size());
    for (const double each : logs) deviations.push_back(std::fabs(each - centre));
    const double scatter = 1.4826 * median(deviations);
    for (const size_t i : members) {
      if (!(last[i] > 0) || !std::isfinite(last[i])) continue;
      const double off = std::log10(last[i]) - centre;
      if (std::fabs(off) < std::max(1.0, 6 * scatter)) continue;
      add(i, kUnlikePeers + std::min(9.0, std::fabs(off)),
          fmt::format("{} at the end {:.2g} times the median of the {} layers of its kind",
                      quantity.name, std::pow(10, off), logs.size()));
    }
  }

  const Report& report_;
  std::vector<std::vector<std::pair<double, std::string>>> layers_;  // score and reason
  std::map<std::string, size_t> of_scope_;
  std::map<std::string, std::vector<size_t>> peers_;  // layers by kind
};

}  // namespace

std::vector<StandingOut> standing_out(const Report& report, size_t most) {
  Search search(report);
  search.named();
  search.measured();
  return search.take(most);
}

}  // namespace tycho::analyzer
