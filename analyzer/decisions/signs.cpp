#include "decisions/signs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

namespace tycho::analyzer {
namespace {

constexpr size_t kFewestLosses = 32;
constexpr size_t kFewestNorms = 12;
constexpr double kLittleLearned = 0.1;  // of the first loss

Samples samples_of(const Report& report, const SeriesStore::Key& key, size_t entity,
                   const std::function<double(double)>& of) {
  Samples result;
  const auto buckets = report.series.series(key, entity);
  for (size_t i = 0; i < buckets.size(); ++i) {
    if (buckets[i].count == 0) continue;
    // Steps of a file may lie further apart than an integer can say.
    const uint64_t since = i * static_cast<uint64_t>(report.series.steps_per_bucket());
    const auto step =
        static_cast<int64_t>(static_cast<uint64_t>(report.series.first_step()) + since);
    result.push_back({step, of(buckets[i].mean())});
  }
  return result;
}

double identity(double value) { return value; }
double root(double square) { return std::sqrt(std::max(square, 0.0)); }

Samples ratio(const Samples& above, const Samples& below) {
  Samples result;
  size_t j = 0;
  for (const Sample& each : above) {
    while (j < below.size() && below[j].step < each.step) ++j;
    if (j == below.size() || below[j].step != each.step || !(below[j].value > 0)) continue;
    result.push_back({each.step, each.value / below[j].value});
  }
  return result;
}

double median_of(std::vector<double> values) {
  if (values.empty()) return kUnknown;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

double run_length(const Report& report) {
  return static_cast<double>(report.last_step) - static_cast<double>(report.first_step) + 1;
}

double share_before(const Report& report, int64_t step) {
  return (static_cast<double>(step) - static_cast<double>(report.first_step)) / run_length(report);
}

double median_between(const Samples& samples, const Report& report, double from, double to) {
  std::vector<double> values;
  for (const Sample& each : samples) {
    const double at = share_before(report, each.step);
    if (at >= from && at <= to) values.push_back(each.value);
  }
  return median_of(std::move(values));
}

double largest(const Samples& samples) {
  double result = kUnknown;
  for (const Sample& each : samples) result = std::fmax(result, each.value);
  return result;
}

Signs::Signs(const Report& of) : report(of) {
  loss = run("loss");
  learning_rate = run("learning_rate");
  if (loss.size() < kFewestLosses) return;
  for (int i = 0; i < report.model.parameter_size(); ++i) {
    const v1::Parameter& described = report.model.parameter(i);
    ParameterSigns signs;
    signs.id = static_cast<size_t>(i);
    signs.name = described.name();
    signs.layer = report.layer_label(described.layer());
    signs.is_weight = described.shape_size() >= 2;
    signs.in_optimizer = described.parameter_group() >= 0;
    signs.elements = described.element_count();
    const auto norms = [&](const char* statistic) {
      return samples_of(report, {statistic, v1::SCOPE_PARAMETER}, signs.id, root);
    };
    signs.gradient = norms("grad_norm_sq");
    signs.update = norms("update_norm_sq");
    signs.weight = norms("weight_norm_sq");
    signs.relative_update = ratio(signs.update, signs.weight);
    parameters.push_back(std::move(signs));
  }
}

bool Signs::enough() const {
  if (loss.size() < kFewestLosses) return false;
  return std::any_of(parameters.begin(), parameters.end(),
                     [](const ParameterSigns& each) { return each.update.size() >= kFewestNorms; });
}

Samples Signs::run(const std::string& statistic) const {
  return samples_of(report, {statistic, v1::SCOPE_RUN}, 0, identity);
}

Samples Signs::layer(const std::string& statistic, size_t id) const {
  return samples_of(report, {statistic, v1::SCOPE_LAYER}, id, identity);
}

double Signs::relative_update(double from, double to) const {
  std::vector<double> values;
  for (const ParameterSigns& each : parameters) {
    if (!each.is_weight || !each.in_optimizer || !(largest(each.gradient) > 0)) continue;
    const double value = median_between(each.relative_update, report, from, to);
    if (std::isfinite(value) && value > 0) values.push_back(value);
  }
  return median_of(std::move(values));
}

double Signs::mean_loss(double from, double to) const {
  double sum = 0;
  double count = 0;
  for (const Sample& each : loss) {
    const double at = share_before(report, each.step);
    if (at < from || at > to || !std::isfinite(each.value)) continue;
    sum += each.value;
    ++count;
  }
  return count > 0 ? sum / count : kUnknown;
}

bool is_at_start(const Report& report, int64_t step) {
  constexpr double kFirstSteps = 2;
  return step >= 0 &&
         static_cast<double>(step) <= static_cast<double>(report.first_step) + kFirstSteps;
}

double Signs::first_loss() const {
  const LossPoint first = report.loss.first();
  return is_at_start(report, first.step) ? first.value : kUnknown;
}

bool Signs::nothing_learned() const {
  const double first = first_loss();
  const double end = mean_loss(0.9, 1);
  return std::isfinite(first) && !(end < first - kLittleLearned * std::fabs(first));
}

const Finding* Signs::finding(const std::string& law, const std::string& scope) const {
  for (const Finding& each : report.findings)
    if (each.law == law && each.scope == scope) return &each;
  return nullptr;
}

double Signs::batch_size() const {
  const Samples sizes = run("batch_size");
  return sizes.empty() ? 0 : sizes.back().value;
}

v1::ParameterGroup Signs::group() const {
  return report.settings.group_size() > 0 ? report.settings.group(0) : v1::ParameterGroup();
}

std::string named(const std::vector<std::string>& names) {
  constexpr size_t kMost = 3;
  std::string text;
  for (size_t i = 0; i < names.size() && i < kMost; ++i) {
    const bool last = i + 1 == names.size();
    text += (i == 0 ? "" : last ? " and " : ", ") + names[i];
  }
  if (names.size() > kMost) text += fmt::format(" and {} more", names.size() - kMost);
  return text;
}

double round_factor(double factor) {
  double best = 1;
  for (const double digit : {1.0, 2.0, 5.0, 10.0}) {
    const double rounded = digit * std::pow(10.0, std::floor(std::log10(factor)));
    if (std::fabs(std::log(rounded / factor)) < std::fabs(std::log(best / factor))) best = rounded;
  }
  return best;
}

}  // namespace tycho::analyzer
