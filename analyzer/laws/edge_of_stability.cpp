// On a quadratic a step of gradient descent multiplies the component along an eigenvector of the
// Hessian by 1 - eta lambda: stable iff eta lambda <= 2. With momentum and with a preconditioner P
// the linear recursion gives another number, which the probe records as the threshold of the
// largest eigenvalue of P^-1/2 (H + coupled decay) P^-1/2. The edge ratio s is the one over the
// other. Training sharpens until s = 1 and stays there: above 1 the loss rises along the top
// eigenvector, which by the third derivative lowers the sharpness again (Damian et al. 2022).
//
// Tested is that s does not stay off 1 once it is there: HOLDS needs s at 1 and a loss that is not
// monotone; s above 1 for long while the loss does not rise is a violation. A run below the edge
// violates nothing: how fast it sharpens is not predicted.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/changed_gradients.h"
#include "laws/edge_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/recent_half.h"
#include "src/statistics/thinned_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.1;          // of s, SGD
constexpr double kAdaptiveTolerance = 0.2;  // of s, where the preconditioner moves too
constexpr double kBelow = 0.8;              // of s: below it the edge is not near
constexpr double kCatapult = 1.2;           // of s: above it and with a rising loss
constexpr double kFewestRises = 0.02;       // share of steps that raise the loss, at the edge
constexpr double kSameSettings = 0.2;       // change of the threshold within a stretch
constexpr double kLargestEpsilonShare = 0.1;
constexpr double kLargeShare = 0.5;  // of the top eigenvector, worth a layer's name

const LawDescription& law() {
  static const LawDescription description = {
      "edge_of_stability",
      "Edge of stability",
      Line::kEmpiricalLaws,
      "s = lambda_max(P^-1 H) / threshold = 1; threshold: gradient descent 2/eta, heavy ball "
      "(2+2 beta)/eta, Nesterov (2+2 beta)/((1+2 beta) eta), Adam (2+2 beta1)/((1-beta1) eta)",
      "Full batch, or a batch well above the noise scale; learning rate constant or slowly "
      "varying; "
      "Adam: epsilon far below sqrt(v)",
      "At the edge, a non-monotone loss is normal: do not lower the learning rate because of "
      "it. Far below, the learning rate can rise. Above it with a rising loss: lower the "
      "learning rate",
      "Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484",
      {"preconditioned_sharpness", "preconditioned_sharpness_error_bound", "stability_threshold",
       "preconditioned_eigenvector_share", "sharpness", "sharpness_error_bound",
       "top_eigenvector_share", "hessian_eigenvalue", "hessian_eigenvalue_error_bound",
       "epsilon_floor_share", "loss", "probe_loss", "loss_change", "batch_size", "grad_noise_trace",
       "grad_signal_sq"},
      {"How fast a run sharpens is not predicted: head-room shrinks as training continues.",
       "The sharpness of a small probe batch is larger than that of all data, on average.",
       "With cross-entropy sharpness falls again late in training, as margins grow.",
       "g'Hg/|g|^2 near 2/eta says nothing about the edge: any stationary SGD has it."}};
  return description;
}

/// Observations under nearly the same threshold.
struct Stretch {
  int64_t begin = -1;
  double threshold = 0;  // where it began
  double learning_rate = kUnknown;
  RecentHalf ratio{2};  // s, bound of its error
  RecentHalf rises{1};
  ThinnedSeries points;  // s, bound of its error, loss
};

class EdgeOfStability : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    share_ = context.column("preconditioned_eigenvector_share", v1::SCOPE_LAYER);
    plain_share_ = context.column("top_eigenvector_share", v1::SCOPE_LAYER);
    epsilon_share_ = context.column("epsilon_floor_share", v1::SCOPE_PARAMETER);
    edge_.begin(context);
    changed_.begin(context);
    layer_.clear();
    for (const v1::Layer& layer : context.model().layer()) layer_.push_back(layer.path());
    elements_.clear();
    for (const v1::Parameter& parameter : context.model().parameter()) {
      elements_.push_back(static_cast<double>(parameter.element_count()));
    }
  }

  void observe(const Frame& frame) override {
    edge_.observe(frame);
    changed_.observe(frame);
    take_epsilon_share(frame);
    if (current_.begin >= 0) current_.rises.add({edge_.loss().rose()}, frame.step());
    if (!edge_.measured()) return;
    last_ratio_ = edge_.ratio();
    const double threshold = edge_.threshold();
    if (current_.begin < 0 || std::fabs(threshold / current_.threshold - 1) > kSameSettings) {
      if (observations(current_) > observations(longest_)) longest_ = current_;
      current_ = Stretch();
      current_.begin = frame.step();
      current_.threshold = threshold;
    }
    current_.learning_rate = edge_.learning_rate();
    current_.ratio.add({edge_.ratio(), edge_.ratio_error()}, frame.step());
    current_.points.add({edge_.ratio(), edge_.ratio_error(), edge_.last_level()}, frame.step());
    // Where the sharpness is the Hessian's own, so is its eigenvector.
    for (const ColumnIndex column : {plain_share_, share_}) {
      if (edge_.adaptive() && column == plain_share_) continue;
      if (const ColumnValues share = frame.column(column); share.present)
        last_share_.assign(share.value, share.value + share.size);
    }
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.evidence_statistic = edge_.sharpness().statistic();
    const Stretch& stretch = observations(longest_) > observations(current_) ? longest_ : current_;
    if (stretch.begin < 0) {
      edge_.sharpness().explain(finding);
      return {finding};
    }
    judge_stretch(stretch, &finding);
    return {finding};
  }

 private:
  static uint64_t observations(const Stretch& stretch) {
    return stretch.ratio.blocks().observations();
  }

  void take_epsilon_share(const Frame& frame) {
    const ColumnValues share = frame.column(epsilon_share_);
    if (!share.present) return;
    double sum = 0;
    double count = 0;
    for (size_t i = 0; i < elements_.size(); ++i) {
      if (!std::isfinite(share[i])) continue;
      sum += share[i] * elements_[i];
      count += elements_[i];
    }
    if (count > 0) floor_share_ = sum / count;
  }

  /// "; layer 2 holds 61 % of its eigenvector"; empty where no layer stands out.
  std::string limiting_layer() const {
    size_t largest = 0;
    for (size_t i = 1; i < last_share_.size(); ++i) {
      if (!(last_share_[i] <= last_share_[largest])) largest = i;
    }
    if (largest >= last_share_.size() || largest >= layer_.size()) return "";
    if (!(last_share_[largest] >= kLargeShare)) return "";
    return fmt::format(" {} holds {:.0f} % of the top eigenvector: it limits the learning rate.",
                       layer_[largest].empty() ? "The root" : "Layer " + layer_[largest],
                       100 * last_share_[largest]);
  }

  /// Is s within the tolerance of 1, its error included, at 95 % of the recent half?
  static bool stays_within(const ThinnedSeries& series, double tolerance) {
    const auto& points = series.points();
    size_t outside = 0;
    for (size_t i = points.size() / 2; i < points.size(); ++i)
      outside += std::fabs(points[i].value[0] - 1) + points[i].value[1] > tolerance;
    return 20 * outside <= points.size() - points.size() / 2;
  }

  void judge_stretch(const Stretch& stretch, Finding* finding) const {
    const double tolerance = edge_.adaptive() ? kAdaptiveTolerance : kTolerance;
    const auto& points = stretch.points.points();
    const Estimate mean = stretch.ratio.blocks().mean({1, 0});
    const double median = stretch.points.median(0, points.size() / 2, points.size());
    const double error = stretch.points.median(1, points.size() / 2, points.size());
    finding->unit = "of the edge";
    finding->predicted = 1;
    finding->measured = median;
    const bool few = observations(stretch) < 2 * BlockAverages::kMinBlocks;
    if (few) {
      finding->ci_low = Estimate::kInfinity;
      finding->ci_high = -Estimate::kInfinity;
      for (const auto& point : points) {
        finding->ci_low = std::min(finding->ci_low, point.value[0] - point.value[1]);
        finding->ci_high = std::max(finding->ci_high, point.value[0] + point.value[1]);
      }
      finding->confidence = 1;
    } else {
      finding->ci_low = median - (mean.value - mean.low) - error;
      finding->ci_high = median + (mean.high - mean.value) + error;
    }
    finding->window_begin = few ? stretch.begin : stretch.ratio.window_begin();
    finding->window_end = stretch.ratio.window_end();
    const std::string rate = std::isfinite(stretch.learning_rate)
                                 ? " at learning rate " + format_number(stretch.learning_rate)
                                 : "";
    if (edge_.adaptive() && floor_share_ > kLargestEpsilonShare) {
      set_not_applicable(*finding,
                         fmt::format("epsilon dominates the preconditioner in {:.0f} % of "
                                     "the entries: the number is an artifact",
                                     100 * floor_share_));
      return;
    }
    if (edge_.regime().excuse(*finding,
                              "with gradient noise training becomes unstable at a lower sharpness"))
      return;
    finding->gate = edge_.regime().describe();
    if (std::isinf(edge_.last_level())) {
      finding->gate += "; the loss is no longer finite";
      finding->importance = 0.85;
      finding->advice = fmt::format(
          "Training diverged{}. When last measured the sharpness was {} of the edge; between two "
          "measurements it may have passed it. Lower the learning rate.{}",
          rate, format_number(last_ratio_), limiting_layer());
      return;
    }
    const bool rising = stretch.points.rises(2);
    if (finding->ci_low > 1 + tolerance && (median > kCatapult || rising)) {
      if (rising) {
        finding->gate += "; above the edge, and the loss rises (catapult)";
        if (&stretch == &current_) finding->alarm = "edge_passed";
        finding->importance = 0.85;
        finding->advice = fmt::format(
            "The sharpness is {} times the stability limit of this optimizer{}, and the loss "
            "rises: lower the learning rate to {} of its value.{}",
            format_number(median), rate, format_number(1 / median), limiting_layer());
      } else if (const std::string changed = changed_.evidence(); !changed.empty()) {
        set_not_applicable(*finding, changed + ": the edge is not where the settings say");
      } else if (!few) {
        // A sharpness that creeps has no interval, and is above throughout where its parts are.
        const bool above = mean.reliable || mean.low > 1 + tolerance;
        set_verdict(*finding, above ? Verdict::kViolated : Verdict::kUnderpowered);
        finding->p_value = band_p_value(mean, 0, 1 + tolerance);
        finding->advice = fmt::format(
            "The sharpness stays at {} times the edge{}, but the loss does not rise: the step "
            "is smaller than the optimizer's settings say (clipped?), or the probe loss is "
            "sharper than the training loss.",
            format_number(median), rate);
      }
      return;
    }
    if (finding->ci_high < 1 - tolerance) {
      const bool below = finding->ci_high < kBelow;
      finding->gate += below ? "; below the edge" : "; approaching the edge";
      if (rising) {
        finding->gate += ", but the loss rises";
        return;
      }
      finding->importance = median < 0.5 ? 0.6 : below ? 0.45 : 0.3;
      if (!(finding->ci_high > 0)) {
        finding->advice = "No positive curvature was found: it sets no limit to the learning rate.";
      } else {
        finding->advice = fmt::format(
            "Below the edge{}: at the current sharpness, the learning rate could be about {} "
            "times larger before reaching the edge{}. Raise it in steps: sharpness usually "
            "rises towards the edge.{}",
            rate, format_number(1 / median),
            finding->ci_low > 0 ? fmt::format(" ({} to {})", format_number(1 / finding->ci_high),
                                              format_number(1 / finding->ci_low))
                                : "",
            limiting_layer());
      }
      return;
    }
    if (few) {
      finding->gate += fmt::format("; only {} measurements", observations(stretch));
      return;
    }
    const BlockAverages& rises = stretch.rises.blocks();
    if (rises.observations() < 2 * BlockAverages::kMinBlocks) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate +=
          "; near the edge, but too few losses were recorded to see whether they "
          "rise";
      return;
    }
    const double share = rises.mean({1}).value;
    if (!(share >= kFewestRises)) {
      finding->gate += "; near the edge, but the loss falls at every step: not at the edge yet";
      finding->advice = "Near the edge" + rate + ": the learning rate has no room to rise.";
      finding->importance = 0.3;
      return;
    }
    const bool inside = finding->ci_low >= 1 - tolerance && finding->ci_high <= 1 + tolerance;
    // A drift within the band does no harm.
    const bool steady = mean.reliable || stays_within(stretch.points, tolerance);
    set_verdict(*finding, inside && steady ? Verdict::kHolds : Verdict::kUnderpowered);
    finding->gate += fmt::format("; {:.0f} % of the steps raise the loss", 100 * share);
    finding->importance = inside ? 0.5 : 0.3;
    finding->advice = fmt::format(
        "At the edge{}: the learning rate sets the sharpness. A non-monotone loss is normal "
        "here and no reason to lower the learning rate; raising it would cause a catapult.{}",
        rate, limiting_layer());
  }

  ColumnIndex share_ = kNoColumn;
  ColumnIndex plain_share_ = kNoColumn;
  ColumnIndex epsilon_share_ = kNoColumn;
  EdgeSeries edge_;
  ChangedGradients changed_;
  double floor_share_ = 0;
  double last_ratio_ = kUnknown;
  Stretch current_;
  Stretch longest_;  // of those before
  std::vector<double> last_share_;
  std::vector<double> elements_;
  std::vector<std::string> layer_;
};

}  // namespace

std::unique_ptr<Law> make_edge_of_stability() { return std::make_unique<EdgeOfStability>(); }

}  // namespace tycho::analyzer
