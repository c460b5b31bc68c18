#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "html_sections.h"
#include "layer_names.h"
#include "src/page/html_parts.h"
#include "src/page/packed_text.h"
#include "standing_out.h"

namespace tycho::analyzer {

using nlohmann::json;

namespace {

/// Numbers of series, all together, up to which every series is given whole: about 3.5 bytes each
/// in the page.
constexpr size_t kMostNumbers = 1000000;
/// Beyond that: numbers of the series that are given whole, of the run and of the layers that stand
/// out, and bytes of the others.
constexpr size_t kMostNumbersOfSome = 280000;
constexpr size_t kMostBytesOfLayers = 1200000;
constexpr size_t kMostBytes = 2000000;
/// A series in fewer stretches is no chart.
constexpr size_t kFewestColumns = 12;
constexpr size_t kMostStandingOut = 24;

bool has_parts(v1::Scope scope) { return scope == v1::SCOPE_LAYER || scope == v1::SCOPE_PARAMETER; }

struct Name {
  std::string name;
  std::string scope;
};

Name name_of(const Report& report, v1::Scope scope, size_t entity) {
  const auto id = static_cast<uint32_t>(entity);
  if (scope == v1::SCOPE_LAYER) {
    const std::string name = layer_name(report.model, id);
    return {name, "layer:" + (id < static_cast<uint32_t>(report.model.layer_size())
                                  ? report.model.layer(static_cast<int>(id)).path()
                                  : name)};
  }
  if (scope == v1::SCOPE_PARAMETER) {
    const std::string name = id < static_cast<uint32_t>(report.model.parameter_size())
                                 ? report.model.parameter(static_cast<int>(id)).name()
                                 : fmt::format("parameter {}", entity);
    return {name, "param:" + name};
  }
  if (scope == v1::SCOPE_INDEX)
    return {fmt::format("number {}", entity + 1), fmt::format("index:{}", entity)};
  return {"run", "run"};
}

bool is_empty(const std::vector<Bucket>& buckets) {
  return std::all_of(buckets.begin(), buckets.end(), [](const Bucket& bucket) {
    return bucket.count == 0 && bucket.non_finite == 0;
  });
}

/// A series as it is kept: the mean of each stretch, and its extremes, interval and values that
/// were not finite where there are any.
json whole_series(const std::vector<Bucket>& buckets) {
  json mean = json::array();
  json least = json::array();
  json largest = json::array();
  json half_width = json::array();
  json broken = json::array();
  bool interval = false;
  bool band = false;
  for (size_t i = 0; i < buckets.size(); ++i) {
    const Bucket& bucket = buckets[i];
    if (bucket.non_finite > 0) broken.push_back(i);
    const double error = bucket.standard_error();
    interval = interval || std::isfinite(error);
    constexpr double kNormalQuantile = 1.959964;
    half_width.push_back(rounded(kNormalQuantile * error));
    band = band || bucket.count > 1;
    mean.push_back(rounded(bucket.mean()));
    least.push_back(bucket.count > 0 ? rounded(bucket.min) : json(nullptr));
    largest.push_back(bucket.count > 0 ? rounded(bucket.max) : json(nullptr));
  }
  json item = {{"mean", std::move(mean)}};
  if (band) {
    item["min"] = std::move(least);
    item["max"] = std::move(largest);
  }
  if (interval) item["half_width"] = std::move(half_width);
  if (!broken.empty()) item["not_finite"] = std::move(broken);
  return item;
}

/// Means of `stride` stretches each in a byte: 0 nothing was measured, 255 not finite, else a level
/// from 1 (the lowest) to 254 (the highest), on a logarithmic scale where that is larger than
/// twenty times the lowest and both are positive.
struct Levels {
  double low = 0;
  double high = 0;
  std::string bytes;
};

Levels levels(const std::vector<Bucket>& buckets, size_t stride, size_t columns) {
  Levels result;
  std::vector<double> mean(columns, kUnknown);
  std::vector<bool> broken(columns);
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (size_t c = 0; c < columns; ++c) {
    double sum = 0;
    double count = 0;
    for (size_t b = c * stride; b < std::min(buckets.size(), (c + 1) * stride); ++b) {
      if (buckets[b].non_finite > 0) broken[c] = true;
      if (buckets[b].count == 0) continue;
      sum += buckets[b].sum;
      count += buckets[b].count;
    }
    if (count == 0 || !std::isfinite(sum)) continue;
    mean[c] = sum / count;
    low = std::min(low, mean[c]);
    high = std::max(high, mean[c]);
  }
  result.bytes.assign(columns, '\0');
  if (low <= high) {
    // As the page says them.
    low = rounded(low).get<double>();
    high = rounded(high).get<double>();
    result.low = low;
    result.high = high;
  }
  const bool logarithmic = low > 0 && high > 20 * low;
  for (size_t c = 0; c < columns; ++c) {
    if (broken[c]) {
      result.bytes[c] = static_cast<char>(255);
      continue;
    }
    if (std::isnan(mean[c])) continue;
    double share = 0;
    if (high > low) {
      share = logarithmic ? std::log(mean[c] / low) / std::log(high / low)
                          : (mean[c] / 2 - low / 2) / (high / 2 - low / 2);
    }
    const auto level = static_cast<int>(std::lround(253 * std::clamp(share, 0.0, 1.0)));
    result.bytes[c] = static_cast<char>(1 + level);
  }
  return result;
}

/// The series of the layers or parameters that are not given whole, in one string.
json levels_of(const Report& report, const SeriesStore::Key& key, size_t entities,
               const std::vector<bool>& whole, size_t columns) {
  const size_t buckets = std::max<size_t>(1, report.series.buckets());
  const size_t stride = (buckets + columns - 1) / columns;
  columns = (buckets + stride - 1) / stride;
  json of = json::array();
  json low = json::array();
  json high = json::array();
  std::string bytes;
  for (size_t entity = 0; entity < entities; ++entity) {
    if (entity < whole.size() && whole[entity]) continue;
    const auto series = report.series.series(key, entity);
    if (is_empty(series)) continue;
    const Levels seen = levels(series, stride, columns);
    of.push_back(entity);
    low.push_back(seen.low);
    high.push_back(seen.high);
    bytes += seen.bytes;
  }
  if (of.empty()) return nullptr;
  return {{"of", std::move(of)}, {"low", std::move(low)}, {"high", std::move(high)},
          {"stride", stride},    {"columns", columns},    {"bytes", base64(bytes)}};
}

/// Which series are given whole, and in how many columns the others.
struct Plan {
  bool all = true;
  std::vector<bool> layer;
  std::vector<bool> parameter;
  size_t layer_columns = 0;      ///< 0: there is no room
  size_t parameter_columns = 0;  ///< 0: there is no room

  const std::vector<bool>& whole(v1::Scope scope) const {
    return scope == v1::SCOPE_LAYER ? layer : parameter;
  }
  size_t columns(v1::Scope scope) const {
    return scope == v1::SCOPE_LAYER ? layer_columns : parameter_columns;
  }
};

Plan plan_of(const Report& report, const std::vector<StandingOut>& outstanding) {
  Plan plan;
  const size_t buckets = std::max<size_t>(1, report.series.buckets());
  constexpr size_t kArrays = 3;
  size_t of_layers = 0;      // series
  size_t of_parameters = 0;  // series
  size_t others = 0;
  size_t statistics_of_layers = 0;
  size_t statistics_of_parameters = 0;
  for (const auto& [key, entities] : report.series.recorded()) {
    if (key.scope == v1::SCOPE_LAYER) {
      of_layers += entities;
      ++statistics_of_layers;
    } else if (key.scope == v1::SCOPE_PARAMETER) {
      of_parameters += entities;
      ++statistics_of_parameters;
    } else {
      others += entities;
    }
  }
  plan.all = (of_layers + of_parameters + others) * buckets * kArrays <= kMostNumbers;
  if (plan.all) return plan;
  plan.layer.assign(static_cast<size_t>(report.model.layer_size()), false);
  plan.parameter.assign(static_cast<size_t>(report.model.parameter_size()), false);
  size_t numbers = others * buckets * kArrays;
  for (const StandingOut& each : outstanding) {
    const v1::Layer& layer = report.model.layer(static_cast<int>(each.layer));
    const size_t parameters = static_cast<size_t>(layer.parameter_size());
    numbers += (statistics_of_layers + parameters * statistics_of_parameters) * buckets * kArrays;
    if (numbers > kMostNumbersOfSome) break;
    plan.layer[each.layer] = true;
    for (const uint32_t id : layer.parameter()) {
      if (id < plan.parameter.size()) plan.parameter[id] = true;
    }
  }
  const auto columns = [&](size_t room, size_t series) -> size_t {
    const size_t most = series == 0 ? buckets : std::min(buckets, room / series);
    return most < std::min(buckets, kFewestColumns) ? 0 : most;
  };
  plan.layer_columns = columns(kMostBytesOfLayers, of_layers);
  const size_t used = plan.layer_columns * of_layers;
  plan.parameter_columns = columns(kMostBytes - std::min(kMostBytes, used), of_parameters);
  return plan;
}

/// What the table of layers shows of each; of squares, the root.
struct TableColumn {
  const char* statistic;
  const char* title;
  bool root;
};
constexpr TableColumn kTable[] = {{"weight_norm_sq", "|weights|", true},
                                  {"grad_norm_sq", "|gradient|", true},
                                  {"update_norm_sq", "|update|", true},
                                  {"activation_rms", "output RMS", false},
                                  {"activation_grad_rms", "RMS of output gradient", false},
                                  {"dead_fraction", "silent units", false},
                                  {"noise_scale", "noise scale", false},
                                  {"feature_change_relative", "feature change", false},
                                  {"weight_spectral_norm", "spectral norm", false},
                                  {"stable_rank", "stable rank", false}};

json layer_table(const Report& report, const std::vector<StandingOut>& outstanding) {
  // Those that have a value of some layer.
  std::vector<TableColumn> shown;
  json columns = json::array();
  for (const TableColumn& column : kTable) {
    const SeriesStore::Key key{column.statistic, v1::SCOPE_LAYER};
    const auto& layers = report.model.layer();
    if (std::none_of(layers.begin(), layers.end(), [&](const v1::Layer& layer) {
          return std::isfinite(report.series.last(key, layer.id()).mean());
        }))
      continue;
    shown.push_back(column);
    columns.push_back({{"statistic", column.statistic}, {"title", column.title}});
  }
  json rows = json::array();
  for (const v1::Layer& layer : report.model.layer()) {
    uint64_t weights = 0;
    for (const uint32_t id : layer.parameter()) {
      if (id < static_cast<uint32_t>(report.model.parameter_size()))
        weights += report.model.parameter(static_cast<int>(id)).element_count();
    }
    json values = json::array();
    for (const TableColumn& column : shown) {
      const Bucket last = report.series.last({column.statistic, v1::SCOPE_LAYER}, layer.id());
      if (last.non_finite > 0) {
        values.push_back("not finite");
      } else {
        values.push_back(rounded(column.root ? std::sqrt(last.mean()) : last.mean()));
      }
    }
    rows.push_back({{"path", layer.path()},
                    {"name", layer_name(report.model, layer.id())},
                    {"block", block_of(layer.path())},
                    {"kind", kind_of(layer)},
                    {"weights", weights},
                    {"values", std::move(values)}});
  }
  json found = json::array();
  for (const StandingOut& each : outstanding)
    found.push_back({{"layer", each.layer}, {"why", each.why}});
  return {{"columns", columns}, {"rows", rows}, {"standing_out", found}};
}

const char* name_of(v1::Scope scope) {
  return scope == v1::SCOPE_RUN     ? "run"
         : scope == v1::SCOPE_LAYER ? "layers"
         : scope == v1::SCOPE_INDEX ? "positions"
                                    : "parameters";
}

}  // namespace

json view_data(const Report& report) {
  const std::vector<StandingOut> outstanding = standing_out(report, kMostStandingOut);
  const Plan plan = plan_of(report, outstanding);
  json series = json::array();
  std::set<std::string> left_out;
  for (const auto& [key, entities] : report.series.recorded()) {
    json entry = {{"statistic", key.statistic},
                  {"scope", name_of(key.scope)},
                  {"unit", ""},
                  {"definition", ""},
                  {"entities", json::array()}};
    for (const auto& definition : report.registry.statistic()) {
      if (definition.name() != key.statistic) continue;
      entry["unit"] = definition.unit();
      entry["definition"] = definition.definition();
    }
    const bool some = !plan.all && has_parts(key.scope);
    for (size_t entity = 0; entity < entities; ++entity) {
      if (some && (entity >= plan.whole(key.scope).size() || !plan.whole(key.scope)[entity]))
        continue;
      const auto buckets = report.series.series(key, entity);
      if (is_empty(buckets)) continue;
      json item = whole_series(buckets);
      const Name named = name_of(report, key.scope, entity);
      item["name"] = named.name;
      item["scope"] = named.scope;
      if (has_parts(key.scope)) item["id"] = entity;
      entry["entities"].push_back(std::move(item));
    }
    if (some && plan.columns(key.scope) == 0) {
      left_out.insert(key.statistic + " of " + name_of(key.scope));
    } else if (some) {
      json rest = levels_of(report, key, entities, plan.whole(key.scope), plan.columns(key.scope));
      if (!rest.is_null()) entry["rest"] = std::move(rest);
    }
    if (!entry["entities"].empty() || entry.contains("rest")) series.push_back(std::move(entry));
  }
  // Layers first: that is what the section is for; then parameters and lists, then the run.
  std::stable_sort(series.begin(), series.end(), [](const json& a, const json& b) {
    const auto rank = [](const json& entry) {
      return entry["scope"] == "layers" ? 0 : entry["scope"] == "run" ? 3 : 1;
    };
    return rank(a) < rank(b);
  });
  json spectrum = {{"step", report.spectrum.step},
                   {"node", report.spectrum.node},
                   {"weight", report.spectrum.weight}};
  json predictions = json::array();
  for (const Finding& finding : report.findings) {
    if (finding.evidence_statistic.empty() || !std::isfinite(finding.evidence_level) ||
        !shows_numbers(finding))
      continue;
    predictions.push_back(
        {{"statistic", finding.evidence_statistic},
         {"scope", finding.scope},
         {"level", finding.evidence_level},
         {"law",
          report.law(finding.law) != nullptr ? report.law(finding.law)->title : finding.law}});
  }
  json parameters = json::array();
  for (const v1::Parameter& parameter : report.model.parameter())
    parameters.push_back({parameter.name(), parameter.layer()});
  return {{"first_step", report.series.first_step()},
          {"last_step", report.last_step},
          {"steps_per_bucket", report.series.steps_per_bucket()},
          {"buckets", report.series.buckets()},
          {"layers", layer_table(report, outstanding)},
          {"parameters", std::move(parameters)},
          {"left_out", left_out},
          {"series", std::move(series)},
          {"spectrum", std::move(spectrum)},
          {"predictions", std::move(predictions)}};
}

}  // namespace tycho::analyzer
