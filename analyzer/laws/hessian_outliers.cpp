// With C classes the Gauss-Newton part of the Hessian is a sum over C outputs, of which the means
// over each class are large: about C eigenvalues (C-1 where the loss does not see a common shift of
// the logits) stand apart from a bulk. Where the spectrum has one clear gap and is smooth behind
// it, the number before the gap is compared with C. The gradient lies mostly in the space of these
// eigenvectors (Gur-Ari et al. 2018), which is reported and not judged.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/thinned_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kGap = 1.5;              // eigenvalue over the next, error bounds included: a gap
constexpr double kSmooth = 1.3;           // the same: none
constexpr double kAgreeing = 0.8;         // share of the recent spectra with the same number
constexpr size_t kFewest = 8;             // recent spectra
constexpr size_t kBulk = 3;               // eigenvalues behind the gap, at least
constexpr double kLargestClasses = 4000;  // a list is no longer than 4096

const LawDescription& law() {
  static const LawDescription description = {
      "hessian_outliers",
      "Outliers of the Hessian",
      Line::kUniversalPhenomena,
      "eigenvalues apart from the bulk: C or C-1 for C classes; |P_C g|^2/|g|^2 near 1",
      "Classification with C outputs of one last layer, recognised by a loss that a common "
      "shift of the outputs does not change; the C+3 largest eigenvalues were measured; the "
      "spectrum has one clear gap (a factor 1.5, and no gap of 1.3 after it)",
      "Most of the curvature, and of the gradient, is in as many directions as there are "
      "classes: they limit the learning rate, but most of the learning happens outside them",
      "Sagun et al. 2016, arXiv:1611.07476; Papyan 2019, arXiv:1901.08244; Gur-Ari et al. 2018, "
      "arXiv:1812.04754",
      {"hessian_eigenvalue", "hessian_eigenvalue_error_bound", "top_subspace_fraction",
       "gradient_curvature_overlap"},
      {"Empirical, for balanced classes and cross-entropy; a single gap need not exist.",
       "A gradient in the top space does not mean that learning happens there (Song et al. "
       "2024, arXiv:2405.16002)."}};
  return description;
}

/// How many come before the largest gap, if that is a clear one and enough of the bulk was
/// measured; 0 otherwise. Within their error bounds of 0 eigenvalues are bulk, however they are
/// spaced.
double count_outliers(const ColumnValues& list, const ColumnValues& bounds) {
  const auto bound = [&](size_t i) {
    return bounds.present && std::isfinite(bounds[i]) ? bounds[i] : 0;
  };
  size_t count = 0;
  double gap = kGap;
  for (size_t i = 0; i + kBulk < list.size; ++i) {
    const double next = std::max(list[i + 1] + bound(i + 1), 0.0);
    const double least = list[i] - bound(i);
    if (!(least > 0 && least > gap * next)) continue;
    count = i + 1;
    if (!(next > 0)) break;
    gap = least / next;
  }
  if (count == 0) return 0;
  for (size_t i = count; i + 1 < list.size; ++i) {
    const double next = list[i + 1] - bound(i + 1);
    if (next > 0 && list[i] + bound(i) > kSmooth * next) return 0;
  }
  return static_cast<double>(count);
}

class HessianOutliers : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    eigenvalue_ = context.column("hessian_eigenvalue", v1::SCOPE_INDEX);
    error_ = context.column("hessian_eigenvalue_error_bound", v1::SCOPE_INDEX);
    fraction_ = context.column("top_subspace_fraction", v1::SCOPE_RUN);
    overlap_ = context.column("gradient_curvature_overlap", v1::SCOPE_RUN);
    classes_ = find_classes(context);
  }

  void observe(const Frame& frame) override {
    const double overlap = frame.column(overlap_)[0];
    if (std::isfinite(overlap)) last_overlap_ = overlap;
    const ColumnValues list = frame.column(eigenvalue_);
    if (!list.present) return;
    most_measured_ = std::max(most_measured_, list.size);
    const double needed = classes_ + kBulk;
    if (!(static_cast<double>(list.size) >= needed)) return;
    spectra_.add({count_outliers(list, frame.column(error_)), frame.column(fraction_)[0]},
                 frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.evidence_statistic = "hessian_eigenvalue";
    finding.unit = "eigenvalues";
    set_verdict(finding, Verdict::kNotApplicable);
    if (most_measured_ == 0) {
      set_not_measured(finding, *context_, "the eigenvalues of the Hessian were",
                       {"hessian_eigenvalue"});
    } else if (!(classes_ >= 2)) {
      finding.gate =
          "no classification was found: a common shift of the outputs of one last layer changes "
          "the loss, unlike a cross-entropy over at least 2 classes";
    } else if (spectra_.points().empty()) {
      finding.gate = fmt::format("{} eigenvalues were measured: {} classes need {}", most_measured_,
                                 format_number(classes_), format_number(classes_ + kBulk));
    } else {
      judge_spectra(&finding);
    }
    return {finding};
  }

 private:
  /// Rows of the last layer before a loss that a common shift does not change, as a cross-entropy
  /// is; NaN: there is none. The outputs of a regression are no classes.
  static double find_classes(const RunContext& context) {
    if (context.structure() == nullptr) return kUnknown;
    double classes = kUnknown;
    for (const v1::SymmetryGroup& group : context.structure()->symmetry_group()) {
      if (group.kind() != "translation") continue;
      for (const uint32_t id : group.parameter()) {
        const v1::Parameter& parameter = context.model().parameter(static_cast<int>(id));
        if (parameter.shape_size() == 0) continue;
        const double rows = static_cast<double>(parameter.shape(0));
        if (std::isfinite(classes) && rows != classes) return kUnknown;  // several heads
        classes = rows;
      }
    }
    return classes >= 2 && classes <= kLargestClasses ? classes : kUnknown;
  }

  void judge_spectra(Finding* finding) const {
    const auto& points = spectra_.points();
    const size_t begin = points.size() / 2;
    const size_t recent = points.size() - begin;
    finding->predicted = classes_;
    finding->window_begin = points[begin].step;
    finding->window_end = points.back().step;
    if (recent < kFewest) {
      set_verdict(*finding, Verdict::kNotYet);
      finding->gate = fmt::format("only {} spectra", points.size());
      return;
    }
    size_t clear = 0;
    size_t as_predicted = 0;
    size_t otherwise = 0;
    double least = Estimate::kInfinity;
    double most = 0;
    double sum = 0;
    for (size_t i = begin; i < points.size(); ++i) {
      const double count = points[i].value[0];
      if (!(count > 0)) continue;
      ++clear;
      const bool agrees = count == classes_ || count == classes_ - 1;
      as_predicted += agrees;
      otherwise += !agrees;
      least = std::min(least, count);
      most = std::max(most, count);
      sum += count;
    }
    if (clear > 0) {
      finding->measured = sum / static_cast<double>(clear);
      finding->ci_low = least;
      finding->ci_high = most;
      finding->confidence = 1;
    }
    const double share = kAgreeing * static_cast<double>(recent);
    set_verdict(*finding, static_cast<double>(as_predicted) >= share ? Verdict::kHolds
                          : static_cast<double>(otherwise) >= share  ? Verdict::kViolated
                                                                     : Verdict::kUnderpowered);
    finding->gate = fmt::format("{} classes; a clear gap in {} of {} spectra",
                                format_number(classes_), clear, recent);
    const double fraction = spectra_.median(1, begin, points.size());
    if (std::isfinite(fraction)) {
      finding->gate +=
          fmt::format("; {:.0f} % of the squared gradient lies in the top space", 100 * fraction);
    }
    if (std::isfinite(last_overlap_))
      finding->gate += fmt::format("; overlap of g and Hg {}", format_number(last_overlap_));
    if (finding->verdict == Verdict::kHolds) {
      finding->advice = fmt::format(
          "{} directions, about one per class, hold the large curvature and limit the learning "
          "rate.",
          format_number(finding->measured));
    } else if (finding->verdict == Verdict::kViolated) {
      // A pattern of experience, not a theorem.
      finding->importance = 0.45;
      finding->advice = fmt::format(
          "{} directions of large curvature for {} classes: are classes missing from the probe "
          "batch, or far from balanced, or are single examples outliers?",
          format_number(finding->measured), format_number(classes_));
    }
  }

  const RunContext* context_ = nullptr;
  ColumnIndex eigenvalue_ = kNoColumn;
  ColumnIndex error_ = kNoColumn;
  ColumnIndex fraction_ = kNoColumn;
  ColumnIndex overlap_ = kNoColumn;
  double classes_ = kUnknown;
  double last_overlap_ = kUnknown;
  size_t most_measured_ = 0;
  ThinnedSeries spectra_;  // number of outliers (0: no clear gap), |P g|^2/|g|^2
};

}  // namespace

std::unique_ptr<Law> make_hessian_outliers() { return std::make_unique<HessianOutliers>(); }

}  // namespace tycho::analyzer
