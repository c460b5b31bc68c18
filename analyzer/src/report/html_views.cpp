#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "html_parts.h"
#include "html_sections.h"

namespace tycho::analyzer {

using nlohmann::json;

json view_data(const Report& report) {
  json series = json::array();
  for (const auto& [key, entities] : report.series.recorded()) {
    json entry = {{"statistic", key.statistic},
                  {"unit", ""},
                  {"definition", ""},
                  {"entities", json::array()}};
    for (const auto& definition : report.registry.statistic()) {
      if (definition.name() != key.statistic) continue;
      entry["unit"] = definition.unit();
      entry["definition"] = definition.definition();
    }
    entry["scope"] = key.scope == v1::SCOPE_RUN     ? "run"
                     : key.scope == v1::SCOPE_LAYER ? "layers"
                     : key.scope == v1::SCOPE_INDEX ? "positions"
                                                    : "parameters";
    for (size_t entity = 0; entity < entities; ++entity) {
      json mean = json::array();
      json least = json::array();
      json largest = json::array();
      json half_width = json::array();
      json broken = json::array();
      bool interval = false;
      int64_t position = -1;
      bool any = false;
      bool band = false;
      for (const Bucket& bucket : report.series.series(key, entity)) {
        ++position;
        any = any || bucket.count > 0 || bucket.non_finite > 0;
        if (bucket.non_finite > 0) broken.push_back(position);
        const double error = bucket.standard_error();
        interval = interval || std::isfinite(error);
        constexpr double kNormalQuantile = 1.959964;
        half_width.push_back(rounded(kNormalQuantile * error));
        band = band || bucket.count > 1;
        mean.push_back(rounded(bucket.mean()));
        least.push_back(bucket.count > 0 ? rounded(bucket.min) : json(nullptr));
        largest.push_back(bucket.count > 0 ? rounded(bucket.max) : json(nullptr));
      }
      if (!any) continue;
      std::string name = "run";
      std::string scope = "run";
      if (key.scope == v1::SCOPE_LAYER) {
        name = report.layer_path(static_cast<uint32_t>(entity));
        scope = "layer:" + (static_cast<int>(entity) < report.model.layer_size()
                                ? report.model.layer(static_cast<int>(entity)).path()
                                : name);
      } else if (key.scope == v1::SCOPE_PARAMETER) {
        name = static_cast<int>(entity) < report.model.parameter_size()
                   ? report.model.parameter(static_cast<int>(entity)).name()
                   : fmt::format("parameter {}", entity);
        scope = "param:" + name;
      } else if (key.scope == v1::SCOPE_INDEX) {
        name = fmt::format("number {}", entity + 1);
        scope = fmt::format("index:{}", entity);
      }
      json item = {{"name", name}, {"scope", scope}, {"mean", mean}};
      if (band) {
        item["min"] = least;
        item["max"] = largest;
      }
      if (interval) item["half_width"] = half_width;
      if (!broken.empty()) item["not_finite"] = broken;
      entry["entities"].push_back(item);
    }
    if (!entry["entities"].empty()) series.push_back(entry);
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
  return {{"first_step", report.series.first_step()},
          {"last_step", report.last_step},
          {"steps_per_bucket", report.series.steps_per_bucket()},
          {"buckets", report.series.buckets()},
          {"series", series},
          {"spectrum", spectrum},
          {"predictions", predictions}};
}

}  // namespace tycho::analyzer
