#include "curvature.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text_layout.h"

namespace tycho::analyzer {
namespace {

double last_value(const Report& report, const char* statistic, v1::Scope scope, size_t entity) {
  return report.series.last({statistic, scope}, entity).mean();
}

}  // namespace

bool Curvature::any() const {
  return std::isfinite(sharpness) || !layer_share.empty() || !eigenvalues.empty();
}

Curvature curvature(const Report& report) {
  Curvature result;
  result.sharpness = last_value(report, "preconditioned_sharpness", v1::SCOPE_RUN, 0);
  result.sharpness_error =
      last_value(report, "preconditioned_sharpness_error_bound", v1::SCOPE_RUN, 0);
  result.threshold = last_value(report, "stability_threshold", v1::SCOPE_RUN, 0);
  for (const char* statistic : {"preconditioned_eigenvector_share", "top_eigenvector_share"}) {
    if (!result.layer_share.empty()) break;
    for (int i = 0; i < report.model.layer_size(); ++i) {
      const double share = last_value(report, statistic, v1::SCOPE_LAYER, static_cast<size_t>(i));
      if (std::isfinite(share))
        result.layer_share.emplace_back(report.layer_label(static_cast<uint32_t>(i)), share);
    }
  }
  std::stable_sort(result.layer_share.begin(), result.layer_share.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  for (const auto& [key, entities] : report.series.recorded()) {
    if (key.statistic != "hessian_eigenvalue" || key.scope != v1::SCOPE_INDEX) continue;
    for (size_t i = 0; i < entities; ++i) {
      const double value = last_value(report, "hessian_eigenvalue", v1::SCOPE_INDEX, i);
      if (std::isfinite(value)) result.eigenvalues.push_back(value);
    }
  }
  for (const Finding& finding : report.findings) {
    if (finding.law == "edge_of_stability") result.headroom = finding.advice;
  }
  return result;
}

std::vector<std::string> curvature_lines(const Curvature& seen) {
  std::vector<std::string> lines;
  if (std::isfinite(seen.sharpness)) {
    std::string line = "sharpness for this optimizer " + short_number(seen.sharpness);
    if (std::isfinite(seen.sharpness_error)) line += " +- " + short_number(seen.sharpness_error);
    if (std::isfinite(seen.threshold)) {
      line += fmt::format(", edge of stability at {} (ratio {})", short_number(seen.threshold),
                          short_number(seen.sharpness / seen.threshold));
    }
    lines.push_back(line);
  }
  if (!seen.layer_share.empty()) {
    constexpr size_t kMost = 5;
    std::string shares;
    for (size_t i = 0; i < seen.layer_share.size() && i < kMost; ++i) {
      shares += fmt::format("{}{} {:.0f} %", i == 0 ? "" : ", ", seen.layer_share[i].first,
                            100 * seen.layer_share[i].second);
    }
    lines.push_back("top eigenvector by layer: " + shares);
  }
  if (!seen.eigenvalues.empty()) {
    constexpr size_t kMost = 12;
    std::string list;
    for (size_t i = 0; i < seen.eigenvalues.size() && i < kMost; ++i)
      list += " " + short_number(seen.eigenvalues[i]);
    if (seen.eigenvalues.size() > kMost) list += " ...";
    lines.push_back("largest eigenvalues:" + list);
  }
  return lines;
}

std::string density_picture(const Spectrum& spectrum, size_t width) {
  if (spectrum.node.empty() || width == 0) return "";
  const auto [low, high] = std::minmax_element(spectrum.node.begin(), spectrum.node.end());
  std::vector<double> sum(width, 0.0);
  for (size_t i = 0; i < spectrum.node.size(); ++i) {
    // Halves, because the range of doubles is larger than the largest double.
    const double range = *high / 2 - *low / 2;
    const double at = range > 0 ? (spectrum.node[i] / 2 - *low / 2) / range : 0.5;
    sum[std::min(width - 1, static_cast<size_t>(at * static_cast<double>(width)))] +=
        spectrum.weight[i];
  }
  static const std::string kRamp = ".:-=+*#%@";
  const double largest = *std::max_element(sum.begin(), sum.end());
  std::string picture(width, ' ');
  for (size_t i = 0; i < width; ++i) {
    if (!(sum[i] > 0)) continue;
    const double decades = std::log10(largest / sum[i]);
    const size_t below = decades < static_cast<double>(kRamp.size() - 1)
                             ? static_cast<size_t>(std::lround(decades))
                             : kRamp.size() - 1;
    picture[i] = kRamp[kRamp.size() - 1 - below];
  }
  return picture;
}

}  // namespace tycho::analyzer
