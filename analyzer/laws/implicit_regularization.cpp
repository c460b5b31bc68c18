// A step of gradient descent follows, to third order in eta, the gradient flow of the modified loss
// L + (eta/4) |grad L|^2 (Barrett and Dherin 2020). Along that flow the loss falls by the integral
// of |g|^2 + (eta/2) g'Hg over the time eta. With the trapezoidal rule for both,
//   excess    = L' - L + (eta/2) (|g|^2 + |g'|^2)        what the plain flow does not explain
//   predicted = -(eta^2/4) (g'Hg + g''H'g')              what the regularizer adds
// of which the ratio R is 1, and R/4 is the coefficient of eta |grad L|^2. Expanding both in eta,
// they differ by (eta^3/12) T(g,g,g), T the third derivative: R - 1 = -(eta/6) T(g,g,g)/g'Hg, a
// sixth of the relative change of the curvature in one step.
//
// On one quadratic mode, a = eta lambda, R = (1-a)/(1-a+a^2/2) exactly: within kTolerance of 1 for
// a up to 0.37. Several modes count by their part of the second-order term, which the mean of a
// along the gradient understates: a violation is claimed only where eta lambda_max is known to be
// that small.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/changed_gradients.h"
#include "laws/edge_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/identity_errors.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.1;
constexpr double kLongestStep = 0.37;  // of eta lambda: R is 0.9 there
constexpr double kAtEdge = 0.9;        // of the threshold 2/eta
constexpr double kRoundingFactor = 4;  // losses and squared gradients round

const LawDescription& law() {
  static const LawDescription description = {
      "implicit_regularization",
      "Implicit gradient regularization",
      Line::kHyperparameters,
      "L' - L + eta (|g|^2 + |g'|^2)/2 = -c eta^2 (g'Hg + g''H'g'), c = 1/4: descent on L + c eta "
      "|grad L|^2; measured: left over right with c = 1/4",
      "Plain SGD (no momentum, no weight decay, no preconditioner, one learning rate), each step "
      "and its loss on one batch; below the edge: eta g'Hg/|g|^2 at most 0.37; above the rounding "
      "of the loss",
      "The learning rate itself regularizes gradients by eta/4: the size of the regularizer "
      "relative to the loss shows whether that matters",
      "Barrett and Dherin 2020, arXiv:2009.11162; exact to second order",
      {"modified_flow_excess", "modified_flow_predicted", "modified_flow_step",
       "modified_flow_first", "implicit_regularizer", "loss", "preconditioned_sharpness",
       "stability_threshold", "sharpness", "hessian_eigenvalue"},
      {"At and above the edge of stability the expansion in eta fails: there curvature "
       "dominates, not this term.",
       "Over minibatches the regularizer is the mean of |grad L_B|^2, which contains the noise."}};
  return description;
}

class ImplicitRegularization : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    excess_ = context.column("modified_flow_excess", v1::SCOPE_RUN);
    predicted_ = context.column("modified_flow_predicted", v1::SCOPE_RUN);
    step_ = context.column("modified_flow_step", v1::SCOPE_RUN);
    first_ = context.column("modified_flow_first", v1::SCOPE_RUN);
    regularizer_ = context.column("implicit_regularizer", v1::SCOPE_RUN);
    loss_ = context.column("loss", v1::SCOPE_RUN);
    sharpness_.begin(context);
    changed_.begin(context);
    epsilon_ = 0;
    for (const v1::Parameter& parameter : context.model().parameter())
      epsilon_ = std::max(epsilon_, IdentityErrors::epsilon(parameter.dtype()));
  }

  void observe(const Frame& frame) override {
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      why_not_ = why_not(*frame.optimizer());
    }
    const double loss = frame.column(loss_)[0];
    if (std::isfinite(loss)) last_loss_ = std::fabs(loss);
    changed_.observe(frame);
    sharpness_.observe(frame);
    if (sharpness_.measured())
      edge_ratio_.add({sharpness_.sharpness() / sharpness_.threshold()}, frame.step());
    const double excess = frame.column(excess_)[0];
    const double predicted = frame.column(predicted_)[0];
    if (!std::isfinite(excess) || !std::isfinite(predicted)) return;
    terms_.add({excess, predicted, std::fabs(excess - predicted), std::fabs(predicted)},
               frame.step());
    sizes_.add({frame.column(step_)[0], frame.column(regularizer_)[0], last_loss_,
                std::fabs(frame.column(first_)[0])},
               frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "of the regularizer eta/4 |grad L|^2";
    finding.evidence_statistic = "modified_flow_excess";
    set_verdict(finding, Verdict::kNotApplicable);
    const BlockAverages& blocks = terms_.blocks();
    if (settings_version_ > 0 && !why_not_.empty()) {
      finding.gate = why_not_;
      return {finding};
    }
    if (blocks.observations() == 0) {
      set_not_measured(finding, *context_, "the terms of the modified flow were",
                       {"modified_flow_excess"});
      return {finding};
    }
    if (settings_version_ == 0) {
      set_no_settings(finding);
      return {finding};
    }
    if (const std::string changed = changed_.evidence(); !changed.empty()) {
      finding.gate = changed;
      return {finding};
    }
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      set_verdict(finding, Verdict::kNotYet);
      finding.gate = only_observations(blocks.observations());
      return {finding};
    }
    judge_terms(&finding);
    return {finding};
  }

 private:
  static std::string why_not(const v1::OptimizerSettings& settings) {
    if (settings.optimizer() != "SGD")
      return "derived for plain SGD; the optimizer is " + settings.optimizer();
    for (const v1::ParameterGroup& group : settings.group()) {
      if (group.momentum() != 0 || group.dampening() != 0)
        return "derived for SGD without momentum";
      if (group.weight_decay() != 0) return "weight decay moves the weights too";
      if (group.learning_rate() != settings.group(0).learning_rate())
        return "parameter groups have different learning rates";
    }
    return "";
  }

  void judge_terms(Finding* finding) const {
    const BlockAverages& blocks = terms_.blocks();
    finding->window_begin = terms_.window_begin();
    finding->window_end = terms_.window_end();
    finding->predicted = 1;
    finding->evidence_level = blocks.mean({0, 1, 0, 0}).value;
    const double step = sizes_.blocks().mean({1, 0, 0, 0}).value;
    const double regularizer = sizes_.blocks().mean({0, 1, 0, 0}).value;
    const double loss = sizes_.blocks().mean({0, 0, 1, 0}).value;
    const double first = sizes_.blocks().mean({0, 0, 0, 1}).value;
    const double longest = longest_step();
    finding->gate = fmt::format("steps are {} of the inverse curvature along the gradient",
                                format_number(step));
    if (std::isfinite(longest))
      finding->gate +=
          fmt::format(", {} of that of the sharpest direction", format_number(longest));
    if (longest >= 2 * kAtEdge || std::fabs(step) > kLongestStep) {
      finding->gate += longest >= 2 * kAtEdge ? ": at the edge the expansion in eta fails"
                                              : ": too long for an expansion in eta";
      return;
    }
    const double size = blocks.mean({0, 0, 0, 1}).value;
    if (!(kTolerance * size > kRoundingFactor * epsilon_ * std::max(loss, first))) {
      finding->gate += "; the second order of a step is too small to tell it from rounding";
      return;
    }
    const Estimate ratio = blocks.ratio({1, 0, 0, 0}, {0, 1, 0, 0});
    set_measured(*finding, ratio);
    set_verdict(*finding, judge_band(ratio, 1 - kTolerance, 1 + kTolerance));
    finding->p_value = band_p_value(ratio, 1 - kTolerance, 1 + kTolerance);
    // A trend of both terms does no harm where single steps agree.
    if (finding->verdict == Verdict::kUnderpowered &&
        blocks.ratio({0, 0, 1, 0}, {0, 0, 0, 1}).value <= kTolerance) {
      set_verdict(*finding, Verdict::kHolds);
    }
    if (finding->verdict == Verdict::kViolated && !(longest <= kLongestStep)) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate +=
          "; outside the tolerance, possibly because of directions sharper than "
          "the expansion allows";
    }
    finding->gate += fmt::format("; coefficient of eta |grad L|^2: {}",
                                 format_interval(ratio.value / 4, ratio.low / 4, ratio.high / 4));
    const double share = regularizer / loss;
    if (finding->verdict == Verdict::kHolds && std::isfinite(share)) {
      finding->advice = fmt::format(
          "Steps descend on L + (eta/4)|grad L|^2; this regularizer is {} of the loss: {}",
          share < 1e-3 ? "less than 0.1 %" : fmt::format("{:.2g} %", 100 * share),
          share < 0.01 ? "at this learning rate it hardly matters."
                       : "the learning rate affects what is learned, so a smaller one is not "
                         "merely slower.");
    } else if (finding->verdict == Verdict::kViolated) {
      finding->importance = 0.7;
      finding->advice =
          "The steps are not those of plain gradient descent on this loss: are gradients clipped "
          "or "
          "scaled, or is the loss evaluated on other data or with dropout?";
    }
  }

  /// eta lambda_max; NaN: not measured.
  double longest_step() const {
    return edge_ratio_.blocks().observations() > 0 ? 2 * edge_ratio_.blocks().mean({1}).value
                                                   : kUnknown;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex excess_ = kNoColumn;
  ColumnIndex predicted_ = kNoColumn;
  ColumnIndex step_ = kNoColumn;
  ColumnIndex first_ = kNoColumn;
  ColumnIndex regularizer_ = kNoColumn;
  ColumnIndex loss_ = kNoColumn;
  EdgeSharpness sharpness_;
  ChangedGradients changed_;
  uint64_t settings_version_ = 0;
  std::string why_not_;
  double last_loss_ = 0;
  double epsilon_ = 0;
  RecentHalf terms_{4};  // excess, predicted, their distance, |predicted|
  RecentHalf sizes_{4};  // step, regularizer, |loss|, first order
  RecentHalf edge_ratio_{1};
};

}  // namespace

std::unique_ptr<Law> make_implicit_regularization() {
  return std::make_unique<ImplicitRegularization>();
}

}  // namespace tycho::analyzer
