// Taylor: on one batch L(theta + u) - L(theta) = g.u + 1/2 u'Hu + O(|u|^3). Measured are all three
// terms, so that the quadratic picture of a step, on which every statement about step sizes rests,
// can be tested: <dL - g.u - 1/2 u'Hu> / <g.u> = 0, as a ratio of means (single steps at the edge
// have g.u near 0).
//
// The gain ratio r = <dL>/<g.u> tells where the step lies along its direction: scaled by c, the
// step changes the loss by c g.u (1 - c (1-r)), best at c = 1/(2(1-r)); r = 1 is the linear regime,
// 1/2 the best step of a line search, 0 as long a step as does not raise the loss.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/edge_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/identity_errors.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.1;     // of the linear term
constexpr double kLinear = 0.9;        // r above it: the step is short
constexpr double kNearEdge = 0.5;      // of the edge of stability: no room to rise by a factor
constexpr double kRoundingFactor = 2;  // tolerance over the rounding of the loss, at least

const LawDescription& law() {
  static const LawDescription description = {
      "one_step_loss_change",
      "Loss change of one step",
      Line::kEmpiricalLaws,
      "dL = g.u + 1/2 u'Hu; gain ratio r = <dL>/<g.u> = 1 + <u'Hu/2>/<g.u>; best multiple of the "
      "step 1/(2(1-r))",
      "The same batch before, after and in all terms; small steps (third order negligible); no "
      "dropout between the two evaluations",
      "r near 1: the step is shorter than the loss allows, so the learning rate can rise; r "
      "near 0: normal at a constant learning rate; r below 0 for long: the steps raise the "
      "loss, so lower the learning rate",
      "McCandlish, Kaplan, Amodei et al. 2018, arXiv:1812.06162, eqs. 2.4 to 2.8; exact to second "
      "order",
      {"loss_change", "loss_change_first_order", "loss_change_second_order", "loss", "probe_loss",
       "grad_dot_update", "preconditioned_sharpness", "stability_threshold", "sharpness",
       "hessian_eigenvalue"},
      {"The best step along one update is greedy: training settles where the update is about twice "
       "as long (McCandlish et al., app. E), which is r = 0.",
       "On its own small batch a step looks better than on all data: r is too large by about "
       "the ratio of noise to signal.",
       "Differences of losses suffer cancellation: float32 resolves a change of 1e-6 of the "
       "loss."}};
  return description;
}

class OneStepLossChange : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    change_ = context.column("loss_change", v1::SCOPE_RUN);
    first_ = context.column("loss_change_first_order", v1::SCOPE_RUN);
    second_ = context.column("loss_change_second_order", v1::SCOPE_RUN);
    layer_first_ = context.column("loss_change_first_order", v1::SCOPE_LAYER);
    layer_second_ = context.column("loss_change_second_order", v1::SCOPE_LAYER);
    loss_ = context.column("loss", v1::SCOPE_RUN);
    product_ = context.column("grad_dot_update", v1::SCOPE_RUN);
    probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
    sharpness_.begin(context);
    regime_.begin(context);
    layers_.resize(static_cast<size_t>(context.model().layer_size()), RecentHalf(3));
    scope_.clear();
    for (const v1::Layer& layer : context.model().layer()) {
      scope_.push_back(context.scope_name(v1::SCOPE_LAYER, layer.id()));
    }
    epsilon_ = 0;
    for (const v1::Parameter& parameter : context.model().parameter())
      epsilon_ = std::max(epsilon_, IdentityErrors::epsilon(parameter.dtype()));
  }

  void observe(const Frame& frame) override {
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_)
      take_settings(frame);
    const ColumnValues losses = frame.column(loss_);
    if (losses.present) diverged_ = !std::isfinite(losses[0]);
    sharpness_.observe(frame);
    if (sharpness_.measured()) edge_ratio_ = sharpness_.sharpness() / sharpness_.threshold();
    regime_.observe(frame);
    double change = frame.column(change_)[0];
    double first = frame.column(first_)[0];
    if (!frame.column(change_).present && regime_.is_full()) {
      // On all of the data the change is that of the probe loss, and the linear term g.dtheta.
      change = frame.column(probe_loss_)[0] - losses[0];
      first = frame.column(product_)[0];
    }
    if (!std::isfinite(change) || !std::isfinite(first)) return;
    const double second = frame.column(second_)[0];
    if (std::isfinite(losses[0])) last_loss_ = std::fabs(losses[0]);
    gain_.add({change, first, last_loss_, std::fabs(first)}, frame.step());
    const double rest = change - first - second;
    quadratic_.add({rest, first, second, std::fabs(rest)}, frame.step());
    const ColumnValues layer_first = frame.column(layer_first_);
    if (!layer_first.present) return;
    const ColumnValues layer_second = frame.column(layer_second_);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const double curvature = std::isfinite(layer_second[i]) ? layer_second[i] : 0;
      layers_[i].add({layer_first[i], first, curvature}, frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    result.push_back(judge_run());
    if (result.front().verdict == Verdict::kNotApplicable ||
        result.front().verdict == Verdict::kNotMeasured)
      return result;
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].blocks().observations() >= 2 * BlockAverages::kMinBlocks)
        result.push_back(describe_layer(i));
    }
    return result;
  }

 private:
  /// The largest momentum (Adam: beta1) of any group.
  void take_settings(const Frame& frame) {
    settings_version_ = frame.optimizer_version();
    momentum_ = 0;
    for (const v1::ParameterGroup& group : frame.optimizer()->group()) {
      const double momentum = std::max(group.momentum(), group.beta1());
      if (momentum < 1) momentum_ = std::max(momentum_, momentum);
    }
  }

  Finding judge_run() const {
    Finding finding = start_finding(law(), "run");
    finding.unit = "of the linear term";
    finding.evidence_statistic = "gain_ratio";
    const BlockAverages& blocks = gain_.blocks();
    if (blocks.observations() == 0) {
      set_not_measured(finding, *context_, "the loss change of single steps was", {"loss_change"});
      return finding;
    }
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = only_observations(blocks.observations());
      return finding;
    }
    finding.window_begin = gain_.window_begin();
    finding.window_end = gain_.window_end();
    const Estimate gain = blocks.ratio({1, 0, 0, 0}, {0, 1, 0, 0});
    set_measured(finding, gain);
    const double size = blocks.mean({0, 0, 0, 1}).value;
    if (!(kTolerance * size > kRoundingFactor * epsilon_ * blocks.mean({0, 0, 1, 0}).value)) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate =
          "the steps change the loss too little to distinguish the change from "
          "rounding";
      return finding;
    }
    const Estimate first = blocks.mean({0, 1, 0, 0});
    if (!(first.high < 0)) {
      set_verdict(finding, Verdict::kUnderpowered);
      finding.gate =
          "the updates do not point downhill on average: their linear term is not resolved from 0";
      return finding;
    }
    const BlockAverages& terms = quadratic_.blocks();
    if (terms.observations() >= 2 * BlockAverages::kMinBlocks) {
      const Estimate rest = terms.ratio({1, 0, 0, 0}, {0, 1, 0, 0});
      finding.predicted = 1 + terms.ratio({0, 0, 1, 0}, {0, 1, 0, 0}).value;
      set_verdict(finding, judge_band(rest, -kTolerance, kTolerance));
      // Training that moves smoothly has a trend, which does no harm where single steps agree.
      const double single = -terms.ratio({0, 0, 0, 1}, {0, 1, 0, 0}).value;
      if (finding.verdict == Verdict::kUnderpowered && single <= kTolerance)
        set_verdict(finding, Verdict::kHolds);
      finding.gate = fmt::format("remainder after first and second order: {} of the linear term",
                                 format_interval(rest.value, rest.low, rest.high));
    } else {
      set_verdict(finding, Verdict::kUnderpowered);
      finding.gate = "the second-order term was not measured: the gain ratio is an estimate";
    }
    advise(gain, &finding);
    return finding;
  }

  void advise(const Estimate& gain, Finding* finding) const {
    const std::string ratio = format_interval(gain.value, gain.low, gain.high);
    if (finding->verdict == Verdict::kViolated) {
      finding->importance = 0.7;
      finding->advice =
          "Steps are so long that the loss is not quadratic along them: estimates of the best "
          "learning rate from curvature are rough here.";
    }
    if (diverged_) finding->gate += "; the loss is no longer finite";
    // Of the steps before it there is nothing to recommend.
    if (!gain.bounded() || diverged_) return;
    if (gain.high < 0 && gain.reliable) {
      finding->importance = 0.85;
      finding->advice = fmt::format(
          "The steps raise the loss of their own batch (gain ratio {}): lower the learning rate.",
          ratio);
    } else if (gain.low > kLinear) {
      // Beyond 1 the curvature along the update is negative and limits nothing.
      const double least = 1 / (2 * (1 - gain.low));
      const std::string best =
          gain.high < 1
              ? fmt::format("about {} times as long ({} to {})",
                            format_number(1 / (2 * (1 - gain.value))), format_number(least),
                            format_number(1 / (2 * (1 - gain.high))))
          : gain.low < 1 ? fmt::format("at least {} times as long", format_number(least))
                         : "many times as long";
      finding->advice = fmt::format(
          "The loss falls in proportion to the step (gain ratio {}): along these updates a step {} "
          "would be best. ",
          ratio, best);
      if (edge_ratio_ > kNearEdge) {
        // A longer step would be unstable in directions that the updates hardly have by now.
        finding->advice += fmt::format(
            "Curvature in other directions limits the learning rate: the sharpness is at {} of "
            "the edge of stability.",
            format_number(edge_ratio_));
      } else if (momentum_ > 0) {
        // The update is a sum over gradients of 1/(1 - momentum) steps: one that is longer at this
        // step alone is not what a larger learning rate does.
        finding->importance = std::min(finding->importance, 0.4);
        finding->advice += fmt::format(
            "This does not give a learning rate: with momentum {} an update combines gradients "
            "of about {} steps, and a larger rate lengthens all of them.",
            format_number(momentum_), format_number(1 / (1 - momentum_)));
      } else {
        finding->importance = 0.6;
        finding->advice += "Raise the learning rate, in steps.";
      }
    } else if (finding->advice.empty()) {
      finding->advice = fmt::format(
          "Gain ratio {}: 1 is a short step, 1/2 the optimum of a line search, 0 the longest "
          "step that does not raise the loss; a constant learning rate settles near 0.",
          ratio);
    }
    const std::string descent = who_descends();
    if (!descent.empty()) finding->advice += descent;
  }

  Estimate share(size_t layer) const { return layers_[layer].blocks().ratio({1, 0, 0}, {0, 1, 0}); }

  /// The layer that contributes most to the descent, where one stands out.
  std::string who_descends() const {
    size_t largest = layers_.size();
    Estimate most;
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].blocks().observations() < 2 * BlockAverages::kMinBlocks) continue;
      const Estimate own = share(i);
      if (!(own.low > 0) || (largest < layers_.size() && own.value <= most.value)) continue;
      largest = i;
      most = own;
    }
    if (largest == layers_.size() || layers_.size() < 2) return "";
    return fmt::format(" Of the descent {:.0f} % is due to {}.", 100 * most.value, scope_[largest]);
  }

  Finding describe_layer(size_t i) const {
    Finding finding = start_finding(law(), scope_[i]);
    set_verdict(finding, Verdict::kNotApplicable);
    finding.unit = "of the run's linear term";
    finding.evidence_statistic = "loss_change_first_order";
    finding.window_begin = layers_[i].window_begin();
    finding.window_end = layers_[i].window_end();
    const Estimate own = share(i);
    set_measured(finding, own);
    const double curvature = layers_[i].blocks().ratio({0, 0, 1}, {0, 1, 0}).value;
    finding.gate = fmt::format(
        "nothing is predicted for a single layer: this is its share of the descent; {} through "
        "curvature {} of the run's linear term",
        curvature <= 0 ? "it gives back" : "it gains", format_number(std::fabs(curvature)));
    if (own.high < 0) finding.gate += "; its updates go uphill";
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex change_ = kNoColumn;
  ColumnIndex first_ = kNoColumn;
  ColumnIndex second_ = kNoColumn;
  ColumnIndex layer_first_ = kNoColumn;
  ColumnIndex layer_second_ = kNoColumn;
  ColumnIndex loss_ = kNoColumn;
  ColumnIndex product_ = kNoColumn;
  ColumnIndex probe_loss_ = kNoColumn;
  EdgeSharpness sharpness_;
  BatchRegime regime_;
  double edge_ratio_ = 0;  // last measured; 0: never
  double momentum_ = 0;
  uint64_t settings_version_ = 0;
  double last_loss_ = 0;
  bool diverged_ = false;
  double epsilon_ = 0;
  RecentHalf gain_{4};              // dL, g.u, |loss|, |g.u|
  RecentHalf quadratic_{4};         // dL - g.u - u'Hu/2, g.u, u'Hu/2, size of the first
  std::vector<RecentHalf> layers_;  // g_l.u_l, g.u, u_l.(Hu)_l/2
  std::vector<std::string> scope_;
};

}  // namespace

std::unique_ptr<Law> make_one_step_loss_change() { return std::make_unique<OneStepLossChange>(); }

}  // namespace tycho::analyzer
