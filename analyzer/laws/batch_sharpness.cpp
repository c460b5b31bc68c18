// For plain SGD the loss of a batch falls to second order iff g_B'H_B g_B/|g_B|^2 < 2/eta along its
// own gradient. Andreyev and Beneventano say that the average of this number over batches, the
// batch sharpness, rises to 2/eta and stays there, as the sharpness does under gradient descent.
// With momentum beta a small batch averages steps to the learning rate eta/(1-beta), so that the
// plateau is 2(1-beta)/eta; a large one behaves as heavy ball, 2(1+beta)/eta.
//
// That the number is a stability threshold is contested. For linear regression on x ~ N(0, I_d) the
// exact mean-square threshold is eta < 2/(1+(d+1)/B), and at it the batch sharpness times eta/2 is
// d/(d+2) for B = 1: near 1, not 1.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "laws/training_regime.h"
#include "src/parameter_settings.h"
#include "src/statistics/recent_half.h"
#include "src/statistics/thinned_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.15;    // of the plateau
constexpr double kSameSettings = 0.2;  // change of the learning rate within a stretch

const LawDescription& law() {
  static const LawDescription description = {
      "batch_sharpness",
      "Batch sharpness at the edge (contested)",
      Line::kEmpiricalLaws,
      "E_B[g_B'H_B g_B/|g_B|^2] plateaus at 2/eta; with momentum at 2(1-beta)/eta for small and "
      "2(1+beta)/eta for large batches; measured: over the plateau",
      "SGD with batches smaller than the data set; heavy-ball momentum or none; learning rate "
      "constant or slowly varying",
      "CONTESTED: at the plateau, noise keeps the sharpness down; a smaller learning rate or a "
      "larger batch lets it rise. To test this, branch the run with 1.1 to 1.5 times the "
      "learning rate, or half the batch: a catapult follows iff it is at this edge",
      "Andreyev and Beneventano 2024, arXiv:2412.20553; momentum: Andreyev et al. 2026, "
      "arXiv:2604.14108",
      {"batch_sharpness", "batch_sharpness_pooled", "batch_size", "grad_noise_trace",
       "grad_signal_sq", "loss", "probe_loss"},
      {"CONTESTED: reviewers found that the mean of ratios and the ratio of means are mixed, that "
       "the "
       "edge of full-batch training is not the limit, and that the exact mean-square threshold is "
       "known (Mulayoff and Michaeli).",
       "A ratio of averages g'Hg/|G|^2 near 2/eta is a different thing: any stationary SGD has "
       "it.",
       "The batches must be fresh, not those of the step."}};
  return description;
}

class BatchSharpness : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    sharpness_ = context.column("batch_sharpness", v1::SCOPE_RUN);
    pooled_ = context.column("batch_sharpness_pooled", v1::SCOPE_RUN);
    regime_.begin(context);
    loss_.begin(context);
  }

  void observe(const Frame& frame) override {
    regime_.observe(frame);
    loss_.observe(frame, false);
    if (!std::isnan(loss_.level())) last_level_ = loss_.level();
    if (frame.optimizer() != nullptr && frame.optimizer()->group_size() > 0) {
      const v1::ParameterGroup& group = frame.optimizer()->group(0);
      why_not_.clear();
      if (frame.optimizer()->optimizer() != "SGD") {
        why_not_ = "stated for SGD; the optimizer is " + frame.optimizer()->optimizer();
      } else if (group.nesterov() || group.dampening() != 0) {
        why_not_ = "not stated for Nesterov momentum or dampening";
      } else if (!(group.learning_rate() > 0)) {
        why_not_ = "the learning rate is 0";
      }
    }
    const double sharpness = frame.column(sharpness_)[0];
    if (!std::isfinite(sharpness)) return;
    seen_ = true;
    if (frame.optimizer() == nullptr || frame.optimizer()->group_size() == 0) return;
    const v1::ParameterGroup& group = frame.optimizer()->group(0);
    if (!why_not_.empty()) return;
    if (momentum_ != group.momentum() ||
        !(std::fabs(group.learning_rate() / first_rate_ - 1) <= kSameSettings)) {
      ratio_.clear();
      points_ = ThinnedSeries();
      momentum_ = group.momentum();
      first_rate_ = group.learning_rate();
    }
    const double pooled = frame.column(pooled_)[0];
    const double scale = group.learning_rate() / 2;
    ratio_.add({scale * sharpness, scale * (std::isfinite(pooled) ? pooled : sharpness)},
               frame.step());
    points_.add({last_level_}, frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.evidence_statistic = "batch_sharpness";
    finding.unit = "of the plateau";
    const BlockAverages& blocks = ratio_.blocks();
    if (!why_not_.empty()) {
      set_not_applicable(finding, why_not_);
      return {finding};
    }
    if (!seen_) {
      set_not_measured(finding, *context_, "the batch sharpness was", {"batch_sharpness"});
      return {finding};
    }
    if (first_rate_ == 0) {
      set_no_settings(finding);
      return {finding};
    }
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = only_observations(blocks.observations()) + " at this learning rate";
      return {finding};
    }
    finding.window_begin = ratio_.window_begin();
    finding.window_end = ratio_.window_end();
    const BatchRegime::Kind kind = regime_.kind();
    const double plateau = momentum_ == 0                      ? 1
                           : kind == BatchRegime::Kind::kLarge ? 1 + momentum_
                                                               : 1 - momentum_;
    const Estimate ratio = blocks.mean({1 / plateau, 0});
    const double pooled = blocks.mean({0, 1 / plateau}).value;
    set_measured(finding, ratio);
    finding.predicted = 1;
    finding.gate = fmt::format("{}; as the ratio of means it is {}", regime_.describe(),
                               format_number(pooled));
    if (kind == BatchRegime::Kind::kFull) {
      set_not_applicable(finding, "full batch: the edge is that of the sharpness");
      return {finding};
    }
    if (momentum_ > 0 && kind == BatchRegime::Kind::kUnknown) {
      regime_.excuse(finding, "");
      finding.gate = "the plateau depends on whether the batch is small; " + finding.gate;
      return {finding};
    }
    judge_ratio(ratio, &finding);
    return {finding};
  }

 private:
  void judge_ratio(const Estimate& ratio, Finding* finding) const {
    if (ratio.high < 1 - kTolerance) {
      finding->gate += "; below the plateau";
      return;
    }
    if (ratio.low > 1 + kTolerance && points_.rises(0)) {
      finding->gate += "; above the plateau, and the loss rises";
      return;
    }
    set_verdict(*finding, judge_band(ratio, 1 - kTolerance, 1 + kTolerance));
    finding->p_value = band_p_value(ratio, 1 - kTolerance, 1 + kTolerance);
    if (finding->verdict == Verdict::kHolds) {
      finding->advice =
          "CONTESTED: the batch sharpness is at the level at which SGD is said to keep it; a "
          "higher learning rate or a smaller batch would then start with a catapult. Branch the "
          "run to test this.";
    } else if (finding->verdict == Verdict::kViolated) {
      // A contested law that fails says more about the law than about the run.
      finding->importance = 0.5;
      finding->advice =
          "CONTESTED: the batch sharpness is above the level at which SGD is said to be stable, "
          "but the loss does not rise: do not set the learning rate by it.";
    }
  }

  const RunContext* context_ = nullptr;
  ColumnIndex sharpness_ = kNoColumn;
  ColumnIndex pooled_ = kNoColumn;
  BatchRegime regime_;
  LossWitness loss_;
  bool seen_ = false;
  std::string why_not_;
  double momentum_ = 0;
  double first_rate_ = 0;  // of the current stretch
  double last_level_ = kUnknown;
  RecentHalf ratio_{2};   // batch sharpness and the pooled one, over 2/eta
  ThinnedSeries points_;  // loss
};

}  // namespace

std::unique_ptr<Law> make_batch_sharpness() { return std::make_unique<BatchSharpness>(); }

}  // namespace tycho::analyzer
