#include "src/compare/picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/page/html_parts.h"

namespace tycho::analyzer {
namespace {

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void take(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  void widen(double share) {
    const double by = high > low ? share * (high - low) : 0.3;
    low -= by;
    high += by;
  }
};

/// Marks of a logarithmic axis between two decimal logarithms: powers of ten, or 1, 2 and 5 times
/// them where there are few.
std::vector<double> decade_marks(const Range& range) {
  std::vector<double> marks;
  const bool few = range.high - range.low < 2.5;
  const int first = static_cast<int>(std::floor(range.low));
  const int last = static_cast<int>(std::ceil(range.high));
  const int stride = std::max(1, (last - first) / 8);
  for (int decade = first; decade <= last; decade += stride) {
    for (const double times : {1.0, 2.0, 5.0}) {
      if (times > 1 && !few) continue;
      const double at = decade + std::log10(times);
      if (at >= range.low && at <= range.high) marks.push_back(at);
    }
  }
  return marks;
}

std::string mark_text(double log10_value) {
  const double value = std::pow(10, log10_value);
  if (value >= 1e5 || value < 1e-3) return fmt::format("{:.0e}", value);
  return value >= 100 ? fmt::format("{:.0f}", value) : fmt::format("{:.3g}", value);
}

std::string sign(Verdict verdict, double x, double y) {
  switch (verdict) {
    case Verdict::kHolds:
      return fmt::format("<circle class=\"good\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\"/>", x, y);
    case Verdict::kViolated:
      return fmt::format("<path class=\"bad\" d=\"M{:.1f} {:.1f}l9 9m0 -9l-9 9\"/>", x - 4.5,
                         y - 4.5);
    case Verdict::kNotApplicable:
      return fmt::format("<path class=\"none\" d=\"M{:.1f} {:.1f}h8\"/>", x - 4, y);
    case Verdict::kUnderpowered:
    case Verdict::kNotYet:
    case Verdict::kNotMeasured:
      break;
  }
  return fmt::format("<circle class=\"open\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\"/>", x, y);
}

}  // namespace

std::string log_log_picture(const Points& points, const Points& line, const std::string& x_label,
                            const std::string& y_label) {
  constexpr double kWidth = 400;
  constexpr double kHeight = 290;
  constexpr double kLeft = 64;
  constexpr double kBottom = 44;
  constexpr double kTop = 12;
  constexpr double kRight = 14;
  const auto logs = [](const Points& from) {
    Points result;
    for (const auto& [x, y] : from) {
      if (x > 0 && y > 0 && std::isfinite(x) && std::isfinite(y))
        result.emplace_back(std::log10(x), std::log10(y));
    }
    return result;
  };
  const Points dots = logs(points);
  Points curve = logs(line);
  if (dots.size() < 2) return "";
  Range x;
  Range y;
  for (const auto& [a, b] : dots) {
    x.take(a);
    y.take(b);
  }
  x.widen(0.15);
  // Scatter of a per cent must not fill the picture.
  const double middle = 0.5 * (y.low + y.high);
  const double least = std::log10(2.0);
  y.low = std::min(y.low, middle - least);
  y.high = std::max(y.high, middle + least);
  y.widen(0.1);
  const auto px = [&](double a) {
    return kLeft + (a - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  };
  const auto py = [&](double b) {
    return kHeight - kBottom - (b - y.low) / (y.high - y.low) * (kHeight - kBottom - kTop);
  };
  std::string out = fmt::format(
      "<svg class=\"picture\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\">",
      kWidth, kHeight);
  for (const double mark : decade_marks(x)) {
    out += fmt::format(
        "<path class=\"grid\" d=\"M{0:.1f} {1}V{2}\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4}</text>",
        px(mark), kTop, kHeight - kBottom, kHeight - kBottom + 16, mark_text(mark));
  }
  for (const double mark : decade_marks(y)) {
    out += fmt::format(
        "<path class=\"grid\" d=\"M{0} {1:.1f}H{2}\"/><text x=\"{3}\" y=\"{4:.1f}\" "
        "text-anchor=\"end\">{5}</text>",
        kLeft, py(mark), kWidth - kRight, kLeft - 6, py(mark) + 4, mark_text(mark));
  }
  std::string path;
  for (const auto& [a, b] : curve) {
    if (a < x.low || a > x.high || b < y.low || b > y.high) continue;
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px(a), py(b));
  }
  if (!path.empty()) out += "<path class=\"fit\" d=\"" + path + "\"/>";
  for (const auto& [a, b] : dots)
    out += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"/>", px(a), py(b));
  out += fmt::format(
      "<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text><text transform=\"translate(13 "
      "{:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text></svg>\n",
      (kLeft + kWidth - kRight) / 2, kHeight - 8, escape(x_label), (kTop + kHeight - kBottom) / 2,
      escape(y_label));
  return out;
}

std::string exponent_picture(const std::vector<ExponentRow>& rows, double tolerance,
                             double excluded) {
  if (rows.empty()) return "";
  constexpr double kRow = 22;
  constexpr double kNames = 190;
  constexpr double kPlot = 320;
  constexpr double kSteps = 100;
  constexpr double kGap = 28;
  constexpr double kTop = 34;
  double reach = 2 * excluded;
  for (const ExponentRow& row : rows) {
    for (const double value : {row.value, row.low, row.high}) {
      if (std::isfinite(value)) reach = std::max(reach, std::fabs(value));
    }
  }
  reach = std::min(reach * 1.05, 2.5);
  double height = kTop + 8;
  std::string group;
  for (const ExponentRow& row : rows) {
    if (row.group != group) height += kRow + 4;
    group = row.group;
    height += kRow;
  }
  const auto px = [&](double value) {
    return kNames + (std::clamp(value, -reach, reach) + reach) / (2 * reach) * kPlot;
  };
  const double steps_at = kNames + kPlot + kGap;
  std::string out = fmt::format(
      "<svg class=\"picture\" viewBox=\"0 0 {0} {1:.0f}\" width=\"{0}\" height=\"{1:.0f}\" "
      "role=\"img\">",
      steps_at + kSteps, height);
  out +=
      fmt::format("<rect class=\"band\" x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{:.1f}\"/>",
                  px(-tolerance), kTop - 8, px(tolerance) - px(-tolerance), height - kTop + 4);
  const double stride = reach > 1.2 ? 0.5 : 0.25;
  for (double mark = -std::floor(reach / stride) * stride; mark <= reach; mark += stride) {
    out += fmt::format(
        "<path class=\"grid\" d=\"M{0:.1f} {1}V{2:.1f}\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4:.3g}</text>",
        px(mark), kTop - 8, height - 4, kTop - 14, mark == 0 ? 0.0 : mark);
  }
  out += fmt::format("<text x=\"{}\" y=\"{}\">with the steps</text>", steps_at, kTop - 14);
  double y = kTop;
  group.clear();
  for (const ExponentRow& row : rows) {
    if (row.group != group) {
      y += kRow + 4;
      out += fmt::format("<text class=\"head\" x=\"0\" y=\"{:.1f}\">{}</text>", y - 6,
                         escape(row.group));
      group = row.group;
    }
    const double middle = y + kRow / 2;
    std::string name = row.name;
    if (name.size() > 28) name = "..." + name.substr(name.size() - 25);
    out += fmt::format("<text x=\"12\" y=\"{:.1f}\"><title>{}</title>{}</text>", middle + 4,
                       escape(row.name), escape(name));
    if (std::isfinite(row.low) && std::isfinite(row.high)) {
      out += fmt::format("<path class=\"interval\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>", px(row.low),
                         middle, px(row.high));
    }
    if (std::isfinite(row.value)) out += sign(row.verdict, px(row.value), middle);
    std::string path;
    Range range;
    for (const auto& [step, exponent] : row.by_step) range.take(std::log1p(std::max(step, 0.0)));
    for (const auto& [step, exponent] : row.by_step) {
      if (!std::isfinite(exponent)) continue;
      const double share = range.high > range.low ? (std::log1p(std::max(step, 0.0)) - range.low) /
                                                        (range.high - range.low)
                                                  : 0.5;
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", steps_at + share * kSteps,
                          middle - std::clamp(exponent / reach, -1.0, 1.0) * (kRow / 2 - 2));
    }
    out += fmt::format("<path class=\"grid\" d=\"M{} {:.1f}h{}\"/>", steps_at, middle, kSteps);
    if (!path.empty()) out += "<path class=\"spark\" d=\"" + path + "\"/>";
    y += kRow;
  }
  return out + "</svg>\n";
}

}  // namespace tycho::analyzer
